// Takes each picture as it comes, and has it shown. The browser restores a lost connection by itself.

import { byId, say, mark } from "./dom.js";
import { showFlow } from "./flow.js";
import { Axis } from "./axis.js";
import { showNumbers, showAudit } from "./numbers.js";
import { showLast } from "./last.js";
import { allowAsking } from "./life.js";
import { allowReplay, countLetters } from "./letters.js";
import { News } from "./news.js";

const axis = new Axis();
const news = new News();
const heard = (event) => JSON.parse(event.data);

function trouble(why) {
  byId("main").classList.toggle("stale", Boolean(why));
  const banner = byId("banner");
  if (why) say(banner, why);
  banner.hidden = !why;
}

function connect() {
  const events = new EventSource("/api/events");
  events.addEventListener("about", (event) => {
    const about = heard(event);
    say(byId("version"), `, by viewer ${about.version}`);
    allowAsking(about.api);
    allowReplay(about.replay);
  });
  events.addEventListener("history", (event) => {
    const points = heard(event);
    axis.restart(points);
    news.restart(points);
  });
  events.addEventListener("audit", (event) => showAudit(heard(event)));
  events.addEventListener("picture", async (event) => {
    const { flow, point, trouble: why } = heard(event);
    mark(byId("status"), "state", why ? "silent" : "live");
    say(byId("status-text"), why ? "the broker is silent" : "live");
    trouble(why ? `The broker is silent: ${why}. What is below is the last that was seen.` : "");
    if (flow) {
      showFlow(flow);
      showNumbers(flow);
      showLast(flow.last);
      countLetters(flow.numbers.dead_letters);
    }
    if (!axis.add(point)) {
      // This tab has missed some: it was slow, or asleep.
      const history = await fetch("/api/history").then((answer) => answer.json()).catch(() => []);
      if (history.length) axis.restart(history);
    }
    news.add(point);
  });
  events.addEventListener("error", () => {
    mark(byId("status"), "state", "silent");
    say(byId("status-text"), "no viewer");
    trouble("The viewer does not answer. This page tries again until it does.");
    // After some answers a browser gives up for good.
    if (events.readyState === EventSource.CLOSED) setTimeout(connect, 2000);
  });
}

connect();
