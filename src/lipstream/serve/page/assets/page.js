// The page's own part: follows a job over server-sent events, and keeps to it after a reload.
import { Progress } from "./progress.js";
import { Player } from "./player.js";

const KEPT = "lipstream-job";
const ENDED = ["done", "failed", "cancelled", "expired"];
let events = null;
let shown = null;

function place() {
  return document.getElementById("ls-job");
}

export function follow(id) {
  events?.close();
  shown?.remove();
  localStorage.setItem(KEPT, id);
  const progress = new Progress(place(), () => cancel(id), forget);
  shown = progress;
  progress.element.scrollIntoView({ block: "nearest", behavior: "auto" });
  events = new EventSource(`api/v1/jobs/${id}/events`);
  events.addEventListener("job", (event) => update(JSON.parse(event.data), progress));
  events.onerror = async () => {
    const answer = await fetch(`api/v1/jobs/${id}`).catch(() => null);
    if (answer === null) {
      progress.say("The server does not answer. Trying again …");
    } else if (answer.status === 404) {
      progress.remove();
      forget();
    }
  };
}

function update(job, progress) {
  if (progress !== shown) return;
  if (!ENDED.includes(job.state)) {
    progress.update(job);
    return;
  }
  events.close();
  if (job.state === "done") {
    progress.remove();
    shown = new Player(place(), job);
  } else if (job.state === "expired") {
    progress.remove();
    forget();
  } else {
    progress.end(job);
  }
}

async function cancel(id) {
  await fetch(`api/v1/jobs/${id}`, { method: "DELETE" }).catch(() => null);
}

function forget() {
  localStorage.removeItem(KEPT);
}

// Faces in the picture stand for the choices below it: the same choice by mouse, by touch and by keyboard.
function chosen() {
  return [...document.querySelectorAll("#face input[type=radio]")];
}

function showChosen() {
  const at = chosen().findIndex((one) => one.checked);
  for (const box of document.querySelectorAll("button.ls-face")) {
    box.setAttribute("aria-pressed", String(Number(box.dataset.face) === at));
  }
}

document.addEventListener("click", (event) => {
  const box = event.target.closest?.("button.ls-face");
  if (box) chosen()[Number(box.dataset.face)]?.click();
});
document.addEventListener("change", (event) => {
  if (event.target.closest?.("#face")) showChosen();
});
window.addEventListener("lipstream-job", (event) => follow(event.detail));
document.documentElement.lang = "en";

// Gradio builds the form after this script has run.
const waiting = new MutationObserver(start);
function start() {
  if (!place()) return;
  waiting.disconnect();
  const id = localStorage.getItem(KEPT);
  if (id) follow(id);
}
waiting.observe(document.documentElement, { childList: true, subtree: true });
start();
