// A job that waits or runs: place in the queue, how far it is, how fast, how long still, and a way to stop it.

const STAGES = {
  read: "Reading the video",
  detect: "Finding the face",
  track: "Following the face",
  align: "Cutting out the face",
  features: "Understanding the speech",
  encode: "Encoding the face",
  denoise: "Generating the mouth",
  decode: "Decoding the face",
  composite: "Putting the face back",
  write: "Writing the result",
};

export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "text") element.textContent = value;
    else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

export function seconds(value) {
  if (value < 90) return `${Math.max(1, Math.round(value))} s`;
  return value < 5400 ? `${Math.round(value / 60)} min` : `${(value / 3600).toFixed(1)} h`;
}

export class Progress {
  constructor(place, cancel, dismissed) {
    this.line = make("p", { class: "ls-line", role: "status", text: "Sending …" });
    this.detail = make("p", { class: "ls-detail" });
    this.bar = make("div", { class: "ls-bar-done" });
    this.track = make(
      "div",
      { class: "ls-bar", role: "progressbar", "aria-label": "Frames done", "aria-valuemin": 0, "aria-valuemax": 100 },
      this.bar
    );
    this.stages = make("ul", { class: "ls-stages" });
    this.fold = make("details", { class: "ls-fold", hidden: true }, make("summary", { text: "Stages" }), this.stages);
    this.stop = make("button", {
      type: "button",
      class: "ls-button",
      text: "Cancel",
      onclick: () => {
        this.stop.disabled = true;
        this.say("Stopping …");
        cancel();
      },
    });
    this.dismissed = dismissed;
    const head = make("div", { class: "ls-row" }, make("div", { class: "ls-grow" }, this.line, this.detail), this.stop);
    this.element = make("div", { class: "ls-card", id: "ls-progress" }, head, this.track, this.fold);
    place.replaceChildren(this.element);
  }

  say(text) {
    if (this.line.textContent !== text) this.line.textContent = text;
  }

  update(job) {
    const progress = job.progress;
    if (job.state === "queued") {
      const ahead = job.position - 1;
      this.say(ahead ? `Waiting: ${ahead} ${ahead === 1 ? "job is" : "jobs are"} before yours` : "Waiting: yours is next");
      this.detail.textContent = "";
      this.fill(0, null);
      return;
    }
    if (!progress || !progress.n_frames) {
      this.say("Starting: the model is made ready");
      this.fill(0, null);
      return;
    }
    const share = progress.frames / progress.n_frames;
    const begun = progress.stages.filter((stage) => stage.frames).map((stage) => stage.name);
    this.say(begun.includes("encode") ? "Generating the mouth" : "Looking for the face");
    const words = [`${progress.frames} of ${progress.n_frames} frames`];
    if (progress.frames_per_s) words.push(`${progress.frames_per_s.toFixed(1)} frames/s`);
    if (progress.left_s !== null) words.push(`about ${seconds(progress.left_s)} left`);
    this.detail.textContent = words.join(" · ");
    this.fill(share, words.join(", "));
    this.show(progress.stages, progress.n_frames);
  }

  fill(share, text) {
    this.bar.style.width = `${100 * share}%`;
    this.track.setAttribute("aria-valuenow", String(Math.round(100 * share)));
    if (text) this.track.setAttribute("aria-valuetext", text);
  }

  show(stages, nFrames) {
    this.fold.hidden = stages.length === 0;
    const rows = stages.map((stage) => {
      const done = make("span", { class: "ls-bar-done", style: `width:${Math.min(100, (100 * stage.frames) / nFrames)}%` });
      return make(
        "li",
        {},
        make("span", { text: STAGES[stage.name] ?? stage.name }),
        make("span", { class: "ls-bar", "aria-hidden": "true" }, done),
        make("span", { class: "ls-number", text: `${stage.frames} of ${nFrames}` })
      );
    });
    this.stages.replaceChildren(...rows);
  }

  end(job) {
    const error = job.error;
    const text = job.state === "cancelled" ? "Cancelled. Nothing was kept." : sentence(error);
    const kind = job.state === "cancelled" ? "ls-line" : "ls-error";
    const close = make("button", {
      type: "button",
      class: "ls-button",
      text: "Close",
      onclick: () => {
        this.remove();
        this.dismissed();
      },
    });
    const said = make("p", { class: kind, role: job.state === "cancelled" ? "status" : "alert", text });
    this.element.replaceChildren(make("div", { class: "ls-row" }, make("div", { class: "ls-grow" }, said), close));
  }

  remove() {
    this.element.remove();
  }
}

function sentence(error) {
  if (!error) return "It did not work, and the server does not say why.";
  const upper = (text) => text.charAt(0).toUpperCase() + text.slice(1);
  return `${upper(error.message)}.${error.fix ? ` ${upper(error.fix)}.` : ""}`;
}
