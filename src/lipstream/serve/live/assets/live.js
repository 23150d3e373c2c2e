// The live page: one connection to the server, what is said over it, and how it comes back when it is lost.
const find = (id) => document.getElementById(id);
const face = find("face");
const LOST_MS = 3000; // a connection that is interrupted for less comes back by itself
const MOST_TRIES = 5;
const KEY = "lipstream-live"; // the session of this tab, so that a reload takes its own place

let call = null; // {peer, id, sender} while there is a connection
let wanted = false; // between Start and Stop
let tries = 0;
let microphone = null;
let readsText = false;

function tell(message) {
  find("said").textContent = message;
  find("said").hidden = !message;
}

function show(state) {
  find("state").textContent = state;
  const on = call !== null && call.id !== undefined;
  find("start").disabled = wanted;
  find("stop").disabled = !wanted;
  for (const id of ["interrupt", "recording", "microphone"]) find(id).disabled = !on;
  for (const id of ["text", "say"]) find(id).disabled = !on || !readsText;
}

async function ask(method, path, body, options = {}) {
  const isJson = body !== undefined && !(body instanceof Blob);
  const headers = isJson ? { "content-type": "application/json" } : {};
  const answer = await fetch(`api/live${path}`, { method, headers, body: isJson ? JSON.stringify(body) : body, ...options });
  if (answer.ok) return answer.status === 204 ? null : answer.json();
  const { error } = await answer.json().catch(() => ({ error: { message: `the server answers ${answer.status}` } }));
  const problem = new Error(error.fix ? `${error.message}: ${error.fix}` : error.message);
  problem.status = answer.status;
  throw problem;
}

function gathered(peer) {
  return new Promise((done) => {
    const check = () => peer.iceGatheringState === "complete" && done();
    peer.addEventListener("icegatheringstatechange", check);
    setTimeout(done, 2000);
    check();
  });
}

async function connect() {
  show("Connecting…");
  const peer = new RTCPeerConnection();
  const mine = (call = { peer, id: undefined, sender: null });
  mine.sender = peer.addTransceiver("audio", { direction: "sendrecv" }).sender;
  peer.addTransceiver("video", { direction: "recvonly" });
  const events = peer.createDataChannel("events");
  events.onmessage = (message) => call === mine && happened(JSON.parse(message.data));
  peer.ontrack = ({ streams }) => { face.srcObject = streams[0]; };
  peer.onconnectionstatechange = () => call === mine && changed(peer);
  try {
    await peer.setLocalDescription();
    await gathered(peer);
    const replaces = sessionStorage.getItem(KEY);
    const { id, sdp } = await ask("POST", "", { sdp: peer.localDescription.sdp, replaces });
    if (call !== mine) return void ask("DELETE", `/${id}`).catch(() => {}); // stopped meanwhile
    sessionStorage.setItem(KEY, id);
    mine.id = id;
    await peer.setRemoteDescription({ type: "answer", sdp });
    face.play().catch(() => tell("Press play: the browser does not start sound by itself."));
  } catch (problem) {
    if (call !== mine) return;
    if (problem.status === undefined) lost(problem.message);
    else end(problem.message);
  }
}

function changed(peer) {
  if (peer.connectionState === "connected") {
    tries = 0;
    tell("");
    show("Ready");
  } else if (peer.connectionState === "failed") {
    lost("the connection is lost");
  } else if (peer.connectionState === "disconnected") {
    const mine = call;
    setTimeout(() => call === mine && peer.connectionState === "disconnected" && lost("the connection is lost"), LOST_MS);
  }
}

function happened(event) {
  if ("speaking" in event) show(event.speaking ? "Speaking" : "Ready");
  if ("ended" in event) end(event.ended.fix ? `${event.ended.message}: ${event.ended.fix}` : event.ended.message);
}

function lost(reason) {
  drop();
  if (tries >= MOST_TRIES) return end(`${reason}; start again`);
  const wait_s = 2 ** tries++;
  tell(`${reason}; trying again in ${wait_s} s`);
  show("Connecting…");
  setTimeout(() => wanted && call === null && connect(), 1000 * wait_s);
}

function drop() {
  silence();
  call?.peer.close();
  call = null;
  face.srcObject = null;
}

function end(message = "") {
  drop();
  wanted = false;
  tell(message);
  show("Not connected");
}

function silence() {
  microphone?.getTracks().forEach((track) => track.stop());
  microphone = null;
  find("microphone").setAttribute("aria-pressed", "false");
}

async function speak() {
  if (microphone !== null) {
    await ask("POST", `/${call.id}/microphone`, { is_on: false });
    silence();
    await call?.sender.replaceTrack(null);
    return;
  }
  if (!navigator.mediaDevices) throw new Error("the browser gives the microphone to https pages and this machine's own only");
  const mine = call;
  const opened = await navigator.mediaDevices.getUserMedia({ audio: true });
  if (call !== mine) return opened.getTracks().forEach((track) => track.stop());
  microphone = opened;
  find("microphone").setAttribute("aria-pressed", "true");
  await mine.sender.replaceTrack(opened.getAudioTracks()[0]);
  await ask("POST", `/${mine.id}/microphone`, { is_on: true });
}

const tried = (work) => async (event) => {
  event?.preventDefault();
  tell("");
  try {
    await work();
  } catch (problem) {
    if (problem.status === 404) lost("the session is over");
    else tell(problem.message);
  }
};

find("start").onclick = tried(async () => {
  wanted = true;
  tries = 0;
  await connect();
});
find("stop").onclick = tried(async () => {
  const id = call?.id;
  end();
  if (id) await ask("DELETE", `/${id}`);
});
find("interrupt").onclick = tried(async () => {
  silence();
  await call.sender.replaceTrack(null);
  await ask("POST", `/${call.id}/interrupt`);
});
find("write").onsubmit = tried(async () => {
  await ask("POST", `/${call.id}/text`, { text: find("text").value });
  find("text").value = "";
});
find("recording").onchange = tried(async () => {
  const [file] = find("recording").files;
  find("recording").value = "";
  if (file) await ask("POST", `/${call.id}/recording`, file);
});
find("microphone").onclick = tried(async () => {
  try {
    await speak();
  } catch (problem) {
    silence();
    throw problem;
  }
});
addEventListener("pagehide", () => call?.id && ask("DELETE", `/${call.id}`, undefined, { keepalive: true }).catch(() => {}));

tried(async () => {
  const about = await ask("GET", "");
  readsText = about.reads_text;
  find("no-text").hidden = readsText;
  face.parentElement.style.setProperty("--aspect", `${about.width} / ${about.height}`);
  show("Not connected");
})();
