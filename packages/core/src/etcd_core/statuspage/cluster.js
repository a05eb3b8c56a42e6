/* Keeps the page current: asks for the fragment and changes what differs, so that the scroll
   position, unfolded parts, the keyboard's place and a selection stay where they are. */
(() => {
  "use strict";

  const page = document.querySelector("[data-etcd-refresh]");
  if (!page) return;
  const part = (role) => page.querySelector(`[data-role=${role}]`);
  const view = part("view"), trouble = part("trouble"), clock = part("clock");
  const pause = part("pause"), filter = part("filter");
  const EVERY = page.dataset.etcdRefresh * 1000;
  const SLOWEST = 30_000;   // between two tries while they fail
  const PATIENCE = 15_000;  // for one answer
  const IDLE = 30 * 60_000; // a page that nobody looks at must not keep a session alive

  const UNREAD = ".etcd-trouble[role=alert]";

  let timer = 0, asking = false, ended = false, failures = 0;
  let readAt = Date.now(), touchedAt = Date.now();

  // -- asking ---------------------------------------------------------------------------------

  async function refresh() {
    clearTimeout(timer);
    if (asking || !wanted()) return;
    asking = true;
    try {
      await take(await fetch(page.dataset.etcdSource, {
        redirect: "manual", cache: "no-store", signal: AbortSignal.timeout(PATIENCE),
      }));
    } catch {
      fail("The application does not answer.");
    }
    asking = false;
    plan();
  }

  async function take(answer) {
    const gone = answer.type === "opaqueredirect" || [401, 403, 404].includes(answer.status);
    if (gone) {
      ended = true;
      fail("You may not see this page any more. Reload it to log in.");
      return;
    }
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").body;
    const unread = fresh.querySelector(UNREAD);
    if (unread) fail(unread.textContent);
    else if (answer.ok && fresh.querySelector(".etcd")) show(fresh);
    else fail(`The application answers ${answer.status}.`);
  }

  function plan() {
    clearTimeout(timer);
    if (wanted()) timer = setTimeout(refresh, Math.min(EVERY * 2 ** failures, SLOWEST));
  }

  function wanted() {
    return !ended && !document.hidden && !paused() && !idle();
  }

  const paused = () => pause.getAttribute("aria-pressed") === "true";
  const idle = () => Date.now() - touchedAt > IDLE;

  // -- showing --------------------------------------------------------------------------------

  function show(fresh) {
    failures = 0;
    readAt = Date.now();
    page.classList.remove("etcd-stale");
    say("");
    morph(view, fresh);
    search();
    tick();
  }

  function fail(why) {
    failures += 1;
    page.classList.toggle("etcd-stale", !empty());
    say(empty() ? why : `Not current since ${time()}. ${why}`);
    tick();
  }

  function say(text) {
    if (trouble.textContent !== text) trouble.textContent = text;
    trouble.hidden = !text;
  }

  function tick() {
    const seconds = Math.round((Date.now() - readAt) / 1000);
    const state = paused() ? ", paused" : idle() ? ", paused after 30 minutes without input" : "";
    clock.textContent = empty() ? "Not read yet" : `Read ${time()}, ${seconds} s ago${state}`;
  }

  // A page that could not be read when it was loaded says so itself.
  const empty = () => view.querySelector(UNREAD) !== null;
  const time = () => new Date(readAt).toLocaleTimeString();

  function search() {
    const words = filter.value.trim().toLowerCase();
    for (const row of view.querySelectorAll("tr[data-key]"))
      row.hidden = !(owner(row) + row.textContent).toLowerCase().includes(words);
    for (const group of view.querySelectorAll("section > details")) {
      group.hidden = !group.querySelector("tr[data-key]:not([hidden])");
      if (words && !group.hidden) group.open = true;
    }
    for (const section of view.querySelectorAll("section"))
      section.hidden = words !== "" && !section.querySelector("tr[data-key]:not([hidden])");
  }

  const owner = (row) => row.closest("section > details")?.dataset.key ?? "";

  // -- changing what differs ------------------------------------------------------------------

  function morph(old, fresh) {
    if (old.isEqualNode(fresh)) return;
    if (old.nodeType === Node.TEXT_NODE) old.data = fresh.data;
    else {
      morphAttributes(old, fresh);
      morphChildren(old, fresh);
    }
  }

  function morphAttributes(old, fresh) {
    if (old === view) return;
    const kept = ["open", "hidden"]; // these are the reader's
    for (const { name, value } of fresh.attributes)
      if (!kept.includes(name) && old.getAttribute(name) !== value) old.setAttribute(name, value);
    for (const { name } of [...old.attributes])
      if (!kept.includes(name) && !fresh.hasAttribute(name)) old.removeAttribute(name);
  }

  function morphChildren(old, fresh) {
    const keyed = new Map();
    for (const child of old.children) if (keyOf(child)) keyed.set(keyOf(child), child);
    let place = old.firstChild;
    for (const next of [...fresh.childNodes]) {
      const key = keyOf(next);
      const match = key ? keyed.get(key) : same(place, next) ? place : null;
      if (match && match === place) place = place.nextSibling;
      else old.insertBefore(match ?? next, place);
      if (match) morph(match, next);
    }
    while (place) {
      const rest = place.nextSibling;
      place.remove();
      place = rest;
    }
  }

  const keyOf = (node) => node.dataset?.key || node.id || "";
  const same = (node, next) => node && !keyOf(node) && node.nodeName === next.nodeName;

  // -- the page -------------------------------------------------------------------------------

  pause.addEventListener("click", () => {
    pause.setAttribute("aria-pressed", String(!paused()));
    pause.textContent = paused() ? "Resume" : "Pause";
    tick();
    if (!paused()) refresh();
  });
  filter.addEventListener("input", search);
  document.addEventListener("visibilitychange", refresh);
  addEventListener("pageshow", (event) => event.persisted && refresh());
  for (const input of ["pointermove", "pointerdown", "keydown", "scroll"])
    addEventListener(input, () => {
      const slept = idle();
      touchedAt = Date.now();
      if (slept) refresh();
    }, { passive: true });

  part("bar").hidden = false;
  setInterval(tick, 1000);
  tick();
  search();
  plan();
})();
