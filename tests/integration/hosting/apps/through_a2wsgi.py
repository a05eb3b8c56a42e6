from a2wsgi import WSGIMiddleware
from flask_site import app

application = WSGIMiddleware(app)
