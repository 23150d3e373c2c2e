// The result over the original, in step: one play button, a divider to drag, the speech's loudness and the gaps.
import { make, seconds } from "./progress.js";

const IN_STEP_S = 0.06;
const FAR_S = 0.4;

export class Player {
  constructor(place, job) {
    this.job = job;
    this.loop = job.settings.loop;
    const base = `api/v1/jobs/${job.id}`;
    this.after = make("video", { src: `${base}/result`, playsinline: true, preload: "auto", class: "ls-after", tabindex: -1 });
    this.before = make("video", {
      src: `page/jobs/${job.id}/original`,
      playsinline: true,
      muted: true,
      preload: "auto",
      class: "ls-before",
      tabindex: -1,
    });
    this.before.muted = true;
    this.divider = make("input", {
      type: "range",
      min: 0,
      max: 100,
      value: 50,
      step: 1,
      class: "ls-divider",
      "aria-label": "Divider: left of it the original, right of it the result",
      oninput: () => this.divide(),
    });
    this.stage = make(
      "div",
      { class: "ls-stage" },
      this.after,
      this.before,
      make("span", { class: "ls-tag ls-tag-before", text: "Original", "aria-hidden": "true" }),
      make("span", { class: "ls-tag ls-tag-after", text: "Lip-synced", "aria-hidden": "true" }),
      make("span", { class: "ls-handle", "aria-hidden": "true" }),
      this.divider
    );
    this.playing = make("button", { type: "button", class: "ls-play", "aria-label": "Play", onclick: () => this.toggle() });
    this.time = make("span", { class: "ls-time" });
    this.wave = make("canvas", { class: "ls-wave", "aria-hidden": "true" });
    this.position = make("input", {
      type: "range",
      min: 0,
      max: 1000,
      value: 0,
      step: 1,
      class: "ls-position",
      "aria-label": "Position",
      oninput: () => this.seek((this.position.value / 1000) * this.duration()),
    });
    this.gaps = make("p", { class: "ls-detail", hidden: true });
    const bar = make("div", { class: "ls-timeline" }, this.wave, this.position);
    const download = make("a", {
      href: `${base}/result`,
      download: `lipstream-${job.id}.mp4`,
      class: "ls-button ls-strong",
      text: "Download",
    });
    this.element = make(
      "div",
      { class: "ls-card", id: "ls-result" },
      make("div", { class: "ls-row" }, make("h2", { class: "ls-grow", text: "Result", tabindex: -1 }), download),
      this.stage,
      make("div", { class: "ls-controls" }, this.playing, bar, this.time),
      this.gaps,
      figures(job)
    );
    place.replaceChildren(this.element);
    this.divide();
    this.listen();
    this.load();
  }

  remove() {
    this.after.pause();
    this.before.pause();
    this.element.remove();
  }

  listen() {
    this.after.addEventListener("loadedmetadata", () => {
      this.stage.style.aspectRatio = `${this.after.videoWidth} / ${this.after.videoHeight}`;
      this.show();
      if (!matchMedia("(prefers-reduced-motion: reduce)").matches) this.after.play().catch(() => {});
    });
    this.before.addEventListener("error", () => {
      this.stage.classList.add("ls-alone");
      this.element.append(make("p", { class: "ls-detail", text: "This browser cannot play the original beside it." }));
    });
    for (const name of ["play", "pause", "ended", "seeked", "timeupdate"]) {
      this.after.addEventListener(name, () => this.show());
    }
    this.after.addEventListener("play", () => this.step());
    this.after.addEventListener("pause", () => this.before.pause());
    new ResizeObserver(() => this.draw()).observe(this.wave);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  async load() {
    const answer = await fetch(`page/jobs/${this.job.id}/timeline`).catch(() => null);
    if (!answer?.ok) return;
    this.timeline = await answer.json();
    const gaps = this.timeline.without_face;
    this.gaps.hidden = gaps.length === 0;
    const all = gaps.map(([begin, end]) => `${clock(begin)} to ${clock(end)}`).slice(0, 8);
    if (gaps.length > all.length) all.push("…");
    this.gaps.textContent = `No face, so left as filmed: ${all.join(", ")}`;
    this.draw();
  }

  duration() {
    return this.after.duration || this.job.result?.duration_s || 0;
  }

  toggle() {
    if (this.after.paused) this.after.play();
    else this.after.pause();
  }

  seek(time) {
    this.after.currentTime = time;
    this.match();
    this.show();
  }

  divide() {
    this.stage.style.setProperty("--at", `${this.divider.value}%`);
    this.divider.setAttribute("aria-valuetext", `${this.divider.value} % original`);
  }

  // Where the original is when the result is at a time: it is shorter than the speech where it was made longer.
  original(time) {
    const length = this.before.duration;
    if (!length || time < length) return { time, runs: true };
    if (this.loop === "loop") return { time: time % length, runs: true };
    if (this.loop === "remap") return { time: (time * length) / this.duration(), runs: false };
    if (this.loop === "hold" || this.loop === "trim") return { time: length, runs: false };
    const turn = time % (2 * length);
    return turn < length ? { time: turn, runs: true } : { time: 2 * length - turn, runs: false };
  }

  match() {
    if (!this.before.duration) return;
    const wanted = this.original(this.after.currentTime);
    const off = wanted.time - this.before.currentTime;
    if (wanted.runs && !this.after.paused && Math.abs(off) < FAR_S) {
      this.before.playbackRate = Math.abs(off) < IN_STEP_S ? 1 : off > 0 ? 1.1 : 0.9;
      if (this.before.paused) this.before.play().catch(() => {});
      return;
    }
    if (!wanted.runs) this.before.pause();
    if (!this.before.seeking && Math.abs(off) > 0.01) this.before.currentTime = wanted.time;
  }

  step() {
    this.match();
    this.show();
    if (!this.after.paused && this.element.isConnected) requestAnimationFrame(() => this.step());
  }

  show() {
    const [at, all] = [this.after.currentTime, this.duration()];
    this.playing.setAttribute("aria-label", this.after.paused ? "Play" : "Pause");
    this.playing.classList.toggle("ls-on", !this.after.paused);
    this.time.textContent = `${clock(at)} / ${clock(all)}`;
    this.position.value = String(all ? (1000 * at) / all : 0);
    this.position.setAttribute("aria-valuetext", `${clock(at)} of ${clock(all)}`);
    this.draw();
  }

  draw() {
    const { width, height } = this.wave.getBoundingClientRect();
    if (!width || !this.timeline) return;
    const scale = window.devicePixelRatio || 1;
    this.wave.width = width * scale;
    this.wave.height = height * scale;
    const context = this.wave.getContext("2d");
    const style = getComputedStyle(this.wave);
    const [done, rest, gap] = ["--ls-accent", "--ls-faint", "--ls-warn"].map((name) => style.getPropertyValue(name));
    const { peaks, without_face, duration_s } = this.timeline;
    const at = this.after.currentTime / (this.duration() || 1);
    context.scale(scale, scale);
    context.fillStyle = gap;
    for (const [begin, end] of without_face) {
      context.fillRect((begin / duration_s) * width, height - 5, Math.max(2, ((end - begin) / duration_s) * width), 5);
    }
    const [step, middle] = [3, (height - 6) / 2];
    for (let x = 0; x < width; x += step) {
      const from = Math.floor((x / width) * peaks.length);
      const to = Math.max(from + 1, Math.floor(((x + step) / width) * peaks.length));
      const tall = Math.max(1.5, Math.max(...peaks.slice(from, to)) * (height - 8));
      context.fillStyle = x / width <= at ? done : rest;
      context.fillRect(x, middle - tall / 2, 2, tall);
    }
  }
}

function clock(time) {
  const whole = Math.floor(time);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}.${Math.floor(10 * (time - whole))}`;
}

function figures(job) {
  const result = job.result ?? {};
  const without = result.faces?.frames_without ?? 0;
  const rows = [
    ["Frames", `${result.frames}${without ? `, of which ${without} without a face` : ""}`],
    ["Length", `${result.duration_s?.toFixed(2)} s`],
    ["Time taken", seconds(result.wall_s ?? 0)],
    ["Seconds of work for each second of video", result.real_time_factor?.toFixed(2)],
    ["Model", job.model],
  ];
  const settings = Object.entries(result.settings ?? job.settings).map(([name, value]) => [name, String(value)]);
  const stages = (result.stages ?? []).map((stage) => [stage.name, `${stage.seconds.toFixed(2)} s`]);
  return make(
    "details",
    { class: "ls-fold" },
    make("summary", { text: "Figures" }),
    table(rows),
    make("h3", { text: "Stages, busy seconds" }),
    table(stages),
    make("h3", { text: "Settings" }),
    table(settings)
  );
}

function table(rows) {
  const lines = rows.map(([name, value]) => make("div", {}, make("dt", { text: name }), make("dd", { text: value })));
  return make("dl", { class: "ls-facts ls-figures" }, ...lines);
}
