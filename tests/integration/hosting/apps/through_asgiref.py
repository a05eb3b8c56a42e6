from asgiref.wsgi import WsgiToAsgi
from flask_site import app

application = WsgiToAsgi(app)
