// The timeline: streams as bars coloured by the version of each token, swaps as windows, phases shaded.
// Reads the JSON in #data (loadtest/report/timeline.py says what it holds). All text goes through textContent or
// canvas text, never through markup.
"use strict";
(() => {
  const stage = document.getElementById("canvas");
  if (!stage) return;
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const tip = byId("tip");

  const TICK = 10000; // units of a second: times are tenths of a millisecond
  const NONE = -1, BASE = -2;
  const HUES = 7;
  const HEAD = 46, FOOT = 24, GROUP = 18, PAD = 6;
  const OUTCOMES = ["ok", "fail", "info"];
  const WHY = { 1: "failed", 2: "undecided", 4: "named by a witness", 8: "two versions", 32: "stale",
    16: "another adapter's token" };

  const streams = data.streams.map((row) => {
    const [name, adapter, sent, first, last, ended, outcome, reason, tokens, why, detail, flat] = row;
    const parts = [];
    for (let i = 0; i < flat.length; i += 3) parts.push({ code: flat[i], start: flat[i + 1], tokens: flat[i + 2] });
    parts.forEach((p, i) => { p.end = i + 1 < parts.length ? parts[i + 1].start : last; });
    return { name, adapter, sent, first, last, end: Math.max(ended, last, sent), outcome, reason, tokens, why, detail, parts };
  });
  const SWAP = ["name", "adapter", "version", "arm", "by", "mode", "outcome", "invoked", "acked", "reason"];
  const swaps = data.swaps.map((row) => Object.fromEntries(SWAP.map((key, i) => [key, row[i]])));

  const view = { from: 0, to: Math.max(data.end, 1), adapter: -1, show: 0, tall: 1 };
  let rows = { list: [], groups: [], row: 10, height: 200 };
  let chosen = null, colours = {}, patterns = new Map(), waiting = false;

  // words
  const seconds = (ticks) => (ticks / TICK).toFixed(ticks % 10 || view.to - view.from < TICK ? 3 : 2) + " s";
  const millis = (ticks) => (ticks / 10).toFixed(1) + " ms";

  function label(code, adapter) {
    if (code < 0) return code === NONE ? "no marker" : code === BASE ? "base" : "more, not drawn";
    const [owner, ownerName, version] = data.contents[code];
    return owner === adapter ? version : `${ownerName} ${version}`;
  }

  // Which version the cursor is on, and the place of its tokens in the stream.
  function here(s, at) {
    let before = 0;
    for (const p of s.parts) {
      if (at >= p.start && at <= p.end) return `here: ${label(p.code, s.adapter)}, tokens ${before}–${before + p.tokens - 1}`;
      before += p.tokens;
    }
    return "";
  }

  function describe(s, at = -1) {
    const versions = s.parts.slice(0, 8).map((p) => `${label(p.code, s.adapter)} ×${p.tokens}`).join(" → ");
    const more = s.parts.length > 8 ? ` → … ${s.parts.length - 8} more` : "";
    const why = Object.keys(WHY).filter((bit) => s.why & bit).map((bit) => WHY[bit]).join(", ");
    return [
      `${s.name} · ${data.adapters[s.adapter]} · ${OUTCOMES[s.outcome]} ${data.reasons[s.reason]}`.trim(),
      `sent ${seconds(s.sent)}, ` + (s.first < 0 ? "no token" : `TTFT ${millis(s.first - s.sent)}`) + `, ended ${seconds(s.end)}`,
      s.tokens ? `${s.tokens} tokens: ${versions}${more}` : "",
      here(s, at),
      why ? `notable: ${why}` : "",
      data.details[s.detail],
    ].filter(Boolean).join("\n");
  }

  function describeSwap(o) {
    const took = o.acked < 0 ? "never acked" : `acked after ${millis(o.acked - o.invoked)}`;
    return `swap ${o.name} · ${o.adapter} → ${o.version || o.mode} · ${o.arm || o.by} · ${o.outcome} ${o.reason}\n` +
      `invoked ${seconds(o.invoked)}, ${took}`;
  }

  // layout
  const visible = (s) => (view.adapter < 0 || s.adapter === view.adapter) && (!view.show || (s.why & view.show));

  function layout() {
    const list = streams.filter(visible);
    const lanes = data.adapters.map(() => []); // per adapter: when each lane is free again
    for (const s of list) {
      const free = lanes[s.adapter];
      let lane = free.findIndex((end) => end < s.sent);
      if (lane < 0) lane = free.length;
      free[lane] = s.end;
      s.lane = lane;
    }
    const total = lanes.reduce((sum, l) => sum + l.length, 0);
    const row = Math.max(.75, Math.min(18, Math.floor(2200 / Math.max(total, 1)) / 4)) * view.tall; // fits a screen
    const groups = [];
    let y = HEAD + PAD;
    lanes.forEach((l, adapter) => {
      if (!l.length) return;
      groups.push({ adapter, y, lanes: l.length });
      for (const s of list) if (s.adapter === adapter) s.y = y + GROUP + s.lane * row;
      y += GROUP + l.length * row + PAD;
    });
    rows = { list, groups, row, height: Math.max(y, HEAD + 60) + FOOT };
  }

  // drawing
  function readColours() {
    const style = getComputedStyle(document.documentElement);
    const get = (name) => style.getPropertyValue("--" + name).trim();
    colours = { hues: Array.from({ length: HUES }, (_, i) => get("v" + i)) };
    for (const n of "bg fg quiet line none base window shade fail unknown link".split(" ")) colours[n] = get(n);
    patterns = new Map();
  }

  // A hue per version; after seven versions the same with stripes (1), then dots (2). Grey and striped without a marker.
  const index = (code) => data.contents[code][3];
  const patterned = (code) => code >= 0 ? Math.floor(index(code) / HUES) % 3 : code === BASE ? 0 : 1;
  // White words on the darkest hue (light theme only), black on all others.
  const darkFill = (code) => code >= 0 && index(code) % HUES === 0 && colours.hues[0].toLowerCase() === "#0072b2";
  const hue = (code) => code >= 0 ? colours.hues[index(code) % HUES] : code === BASE ? colours.base : colours.none;

  function fill(code) {
    if (patterns.has(code)) return patterns.get(code);
    const kind = patterned(code);
    const tile = Object.assign(document.createElement("canvas"), { width: 8, height: 8 });
    const pen = tile.getContext("2d");
    pen.fillStyle = hue(code);
    pen.fillRect(0, 0, 8, 8);
    pen.strokeStyle = pen.fillStyle = "rgba(0, 0, 0, .55)";
    if (kind === 1) {
      pen.lineWidth = 1.6;
      pen.beginPath();
      for (const at of [-8, 0, 8]) { pen.moveTo(at, 8); pen.lineTo(at + 8, 0); }
      pen.stroke();
    } else if (kind === 2) {
      for (const [x, y] of [[2, 2], [6, 6]]) { pen.beginPath(); pen.arc(x, y, 1.3, 0, 7); pen.fill(); }
    }
    const out = kind ? pen.createPattern(tile, "repeat") : hue(code);
    patterns.set(code, out);
    return out;
  }

  const width = () => stage.clientWidth;
  const x = (t) => (t - view.from) / (view.to - view.from) * width();
  const time = (px) => view.from + px / width() * (view.to - view.from);

  function draw() {
    const ratio = window.devicePixelRatio || 1;
    stage.style.height = rows.height + "px";
    stage.width = Math.round(width() * ratio);
    stage.height = Math.round(rows.height * ratio);
    const pen = stage.getContext("2d");
    pen.scale(ratio, ratio);
    pen.font = "11px system-ui, sans-serif";
    pen.textBaseline = "middle";
    pen.fillStyle = colours.bg;
    pen.fillRect(0, 0, width(), rows.height);
    drawPhases(pen);
    drawSwaps(pen, true);
    for (const g of rows.groups) {
      pen.fillStyle = colours.quiet;
      pen.fillText(`${data.adapters[g.adapter]} (${g.lanes} at once)`, 4, g.y + GROUP / 2);
    }
    for (const s of rows.list) if (s.end >= view.from && s.sent <= view.to) drawStream(pen, s);
    drawSwaps(pen, false);
    drawEvents(pen);
    drawAxis(pen);
  }

  function drawPhases(pen) {
    for (const [index, arm, adapter, from, to] of data.phases) {
      const a = Math.max(x(from), 0), b = Math.min(x(to), width());
      if (b <= a) continue;
      pen.fillStyle = index % 2 ? colours.shade : "transparent";
      pen.fillRect(a, 0, b - a, rows.height - FOOT);
      pen.strokeStyle = colours.line;
      pen.strokeRect(a + .5, -1, 0, rows.height - FOOT);
      pen.fillStyle = colours.fg;
      const word = [`${arm} ${adapter}`.trim(), arm].find((w) => pen.measureText(w).width + 8 < b - a);
      if (word) pen.fillText(word, a + 5, 12);
    }
  }

  function drawSwaps(pen, under) {
    let busyUntil = -1;
    for (const o of swaps) {
      const a = x(o.invoked), b = o.acked < 0 ? a + 2 : Math.max(x(o.acked), a + 2);
      if (b < 0 || a > width()) continue;
      const mine = view.adapter < 0 || o.adapter === data.adapters[view.adapter];
      pen.globalAlpha = mine ? 1 : .25;
      if (under) {
        pen.fillStyle = colours.window;
        pen.fillRect(a, HEAD - 18, b - a, rows.height - FOOT - HEAD + 18);
      } else {
        pen.strokeStyle = o.outcome === "fail" ? colours.fail : o.outcome === "info" ? colours.unknown : colours.fg;
        pen.setLineDash({ ok: [], fail: [5, 3], info: [2, 3] }[o.outcome] || []);
        pen.globalAlpha *= .7;
        // Two edges closer than this would be one thick bar: the ack alone says when it was done.
        for (const edge of o.acked < 0 ? [a] : x(o.acked) - a < 5 ? [x(o.acked)] : [a, b]) {
          pen.beginPath(); pen.moveTo(edge, HEAD - 18); pen.lineTo(edge, rows.height - FOOT); pen.stroke();
        }
        pen.setLineDash([]);
        pen.globalAlpha = mine ? 1 : .4;
        const sign = { ok: "", fail: " ✗", info: " ?" }[o.outcome] || "";
        const word = `${o.version || o.mode}${o.by === "scenario" ? "" : " " + o.by}${sign}`;
        if (a > busyUntil && mine) {
          pen.fillStyle = pen.strokeStyle;
          pen.fillText(word, a + 2, 34);
          busyUntil = a + pen.measureText(word).width + 6;
        }
      }
      pen.globalAlpha = 1;
    }
  }

  function drawEvents(pen) {
    for (const [at, what] of data.events) {
      const a = x(at);
      if (a < 0 || a > width()) continue;
      pen.fillStyle = colours.unknown;
      pen.beginPath(); pen.moveTo(a - 5, rows.height - FOOT); pen.lineTo(a + 5, rows.height - FOOT);
      pen.lineTo(a, rows.height - FOOT - 9); pen.fill();
      const wide = pen.measureText(what).width;
      pen.fillStyle = colours.fg;
      pen.fillText(what, Math.min(a + 6, width() - wide - 2), rows.height - FOOT - 7);
    }
  }

  function drawStream(pen, s) {
    const h = rows.row - (rows.row > 6 ? 2 : rows.row > 3 ? 1 : rows.row / 8), middle = s.y + h / 2;
    const thin = (from, to) => { if (to > from) pen.fillRect(x(from), middle - .75, Math.max(x(to) - x(from), .5), 1.5); };
    pen.fillStyle = colours.quiet;
    thin(s.sent, s.first < 0 ? s.end : s.first);
    if (s.first >= 0) thin(s.last, s.end);
    s.parts.forEach((p, i) => {
      const a = x(p.start), b = Math.max(x(p.end), a + 1.5), from = Math.max(a, 0);
      if (b < 0 || a > width()) return;
      pen.fillStyle = fill(p.code);
      pen.fillRect(a, s.y, b - a, h);
      if (i && b - a > 2) { pen.fillStyle = colours.bg; pen.fillRect(a - .5, s.y, 1, h); }
      const word = label(p.code, s.adapter);
      if (h >= 10 && Math.min(b, width()) - from > pen.measureText(word).width + 6) {
        if (patterned(p.code)) { pen.fillStyle = hue(p.code); pen.fillRect(from + 1, s.y, pen.measureText(word).width + 4, h); }
        pen.fillStyle = darkFill(p.code) ? "#fff" : "#000";
        pen.fillText(word, from + 3, middle + .5);
      }
    });
    if (s.outcome) {
      pen.fillStyle = s.outcome === 1 ? colours.fail : colours.unknown;
      if (rows.row < 6) pen.fillRect(x(s.end), s.y, 3, Math.max(h, 2));
      else pen.fillText(s.outcome === 1 ? "✗" : "?", Math.min(x(s.end) + 1, width() - 9), middle);
    }
    if (s === chosen || ((s.why & 4) && rows.row >= 4)) {
      pen.strokeStyle = s === chosen ? colours.link : colours.fg;
      pen.lineWidth = s === chosen ? 3 : 1.5;
      pen.strokeRect(x(s.sent) - 1, s.y - 1, Math.max(x(s.end) - x(s.sent), 3) + 2, h + 2);
      pen.lineWidth = 1;
    }
  }

  function drawAxis(pen) {
    const span = (view.to - view.from) / TICK, floor = rows.height - FOOT;
    const raw = span / Math.max(width() / 90, 2), power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((m) => m * power).find((v) => v >= raw);
    pen.clearRect(0, floor, width(), FOOT);
    pen.fillStyle = pen.strokeStyle = colours.quiet;
    pen.fillRect(0, floor, width(), 1);
    for (let v = Math.ceil(view.from / TICK / step) * step; v <= view.to / TICK; v += step) {
      const px = x(v * TICK);
      pen.fillRect(px, floor, 1, 5);
      const word = `${+v.toFixed(4)} s`;
      if (px + pen.measureText(word).width < width()) pen.fillText(word, px + 3, floor + 13);
    }
  }

  // moving
  function redraw() {
    if (!waiting) requestAnimationFrame(() => { waiting = false; draw(); });
    waiting = true;
  }
  function look(from, to) {
    const span = Math.min(Math.max(to - from, 50), Math.max(data.end, 50)); // not closer than 5 ms
    view.from = Math.min(Math.max(from, 0), Math.max(data.end - span, 0));
    view.to = view.from + span;
    redraw();
  }
  const zoom = (factor, at = (view.from + view.to) / 2) =>
    look(at - (at - view.from) * factor, at + (view.to - at) * factor);
  const pan = (share) => look(view.from + share * (view.to - view.from), view.to + share * (view.to - view.from));
  const whole = () => look(0, data.end);

  function choose(s, reveal) {
    chosen = s;
    if (s && reveal && (s.end < view.from || s.sent > view.to || view.to - view.from > 60 * (s.end - s.sent + 1))) {
      const margin = Math.max((s.end - s.sent) * 2, 500);
      look(s.sent - margin, s.end + margin);
    }
    redraw();
    if (s) say(describe(s), Math.max(x(s.sent), 0), s.y + rows.row + 6); else say("");
    if (s && reveal) tip.scrollIntoView({ block: "nearest", behavior: "instant" });
  }

  function say(words, left = 0, topPx = 0) {
    if (tip.textContent !== words) tip.textContent = words;
    tip.style.left = Math.max(0, Math.min(left, width() - tip.offsetWidth)) + "px";
    tip.style.top = topPx + "px";
  }

  function step(by, wanted = () => true) {
    const list = rows.list.filter(wanted), now = list.indexOf(chosen);
    const next = now >= 0 ? now + by : Math.max(0, list.findIndex((s) => s.end >= view.from));
    if (list.length) choose(list[(next + list.length) % list.length], true);
  }

  function streamAt(px, py) {
    const t = time(px), slack = time(px + 3) - t;
    return rows.list.find((s) => py >= s.y - 1 && py < s.y + rows.row && t >= s.sent - slack && t <= s.end + slack);
  }

  const swapAt = (px) => swaps.find((o) => px >= x(o.invoked) - 3 && px <= x(Math.max(o.acked, o.invoked)) + 3);

  function hover(e) {
    const s = streamAt(e.offsetX, e.offsetY), o = s || e.offsetY > rows.height - FOOT ? null : swapAt(e.offsetX);
    if (s || o) say(s ? describe(s, time(e.offsetX)) : describeSwap(o), e.offsetX + 14, e.offsetY + 16);
    else if (chosen) choose(chosen, false);
    else say("");
  }

  const taller = () => { view.tall = view.tall < 8 ? 2 * view.tall : 1; relayout(); };
  const KEYS = {
    ArrowLeft: () => pan(-.2), ArrowRight: () => pan(.2), ArrowDown: () => step(1), ArrowUp: () => step(-1),
    "+": () => zoom(.6), "=": () => zoom(.6), "-": () => zoom(1 / .6), 0: whole, Home: whole,
    n: () => step(1, (s) => s.why), t: taller, Escape: () => choose(null),
  };

  function relayout() {
    layout();
    if (chosen && !rows.list.includes(chosen)) choose(null);
    redraw();
  }

  function listen() {
    stage.addEventListener("wheel", (e) => {
      e.preventDefault();
      if (e.shiftKey || Math.abs(e.deltaX) > Math.abs(e.deltaY)) pan((e.deltaX || e.deltaY) / width());
      else zoom(Math.exp(Math.sign(e.deltaY) * Math.min(Math.abs(e.deltaY), 120) / 400), time(e.offsetX));
    }, { passive: false });
    let grip = null;
    stage.addEventListener("pointerdown", (e) => {
      grip = { x: e.offsetX, from: view.from, to: view.to, moved: false };
      stage.setPointerCapture(e.pointerId);
    });
    stage.addEventListener("pointermove", (e) => {
      if (!grip) return hover(e);
      const shift = (grip.x - e.offsetX) / width() * (grip.to - grip.from);
      if (grip.moved ||= Math.abs(grip.x - e.offsetX) > 3) { say(""); look(grip.from + shift, grip.to + shift); }
    });
    stage.addEventListener("pointerup", (e) => {
      if (grip && !grip.moved) choose(streamAt(e.offsetX, e.offsetY) || null, false);
      grip = null;
    });
    stage.addEventListener("pointercancel", () => { grip = null; });
    stage.addEventListener("pointerleave", () => { if (!grip) chosen ? choose(chosen, false) : say(""); });
    stage.addEventListener("keydown", (e) => {
      if (e.ctrlKey || e.metaKey || e.altKey || !KEYS[e.key]) return;
      e.preventDefault();
      KEYS[e.key]();
    });
    const clicks = { "zoom-in": KEYS["+"], "zoom-out": KEYS["-"], left: KEYS.ArrowLeft, right: KEYS.ArrowRight,
      all: whole, next: KEYS.n, taller };
    for (const [id, run] of Object.entries(clicks)) byId(id).addEventListener("click", run);
    for (const id of ["adapter", "show"]) {
      byId(id).addEventListener("change", (e) => { view[id] = Number(e.target.value); relayout(); });
    }
    addEventListener("resize", redraw);
    addEventListener("beforeprint", () => { for (const d of document.querySelectorAll("h3 + .witness")) d.open = true; repaint(); });
    addEventListener("afterprint", repaint);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
    matchMedia("print").addEventListener("change", repaint);
  }

  const repaint = () => { readColours(); draw(); legend(); };
  // page
  function legend() {
    const used = new Set(streams.flatMap((s) => s.parts.map((p) => p.code)));
    const [shown, codes] = [[...used].filter((c) => c >= 0).sort((a, b) => a - b), [NONE, BASE, -3].filter((c) => used.has(c))];
    const list = byId("legend");
    list.replaceChildren();
    for (const code of [...shown.slice(0, 24), ...codes]) {
      const words = code >= 0 ? data.contents[code].slice(1, 3).join(" ")
        : code === BASE ? "base model" : code === NONE ? "no marker: version unknown" : "more segments than are drawn";
      entry(list, words, (pen) => { pen.fillStyle = fill(code); pen.fillRect(0, 0, 44, 14); });
    }
    if (shown.length > 24) entry(list, `… and ${shown.length - 24} more versions; colours repeat, with stripes, then dots`);
    entry(list, "swap: invoked to acked (dashed edge ✗ refused, dotted ? unknown)", (pen) => {
      pen.fillStyle = colours.window; pen.fillRect(8, 0, 28, 14);
      pen.fillStyle = colours.fg; pen.fillRect(8, 0, 1, 14); pen.fillRect(36, 0, 1, 14);
    });
    if (data.events.length) entry(list, "event (see The run)", (pen) => {
      pen.fillStyle = colours.unknown;
      pen.beginPath(); pen.moveTo(16, 14); pen.lineTo(28, 14); pen.lineTo(22, 3); pen.fill();
    });
    entry(list, "waiting for the first token, or for the end", (pen) => { pen.fillStyle = colours.quiet; pen.fillRect(0, 6, 44, 2); });
  }

  function entry(list, words, paint) {
    const item = document.createElement("li");
    if (paint) {
      const box = Object.assign(document.createElement("canvas"), { width: 44, height: 14, ariaHidden: "true" });
      paint(box.getContext("2d"));
      item.append(box);
    }
    item.append(words);
    list.append(item);
  }

  function controls() {
    data.adapters.forEach((name, code) => byId("adapter").append(new Option(name, code)));
    byId("thinned").textContent = data.note;
    byId("controls").hidden = false;
    for (const button of document.querySelectorAll(".goto")) {
      const target = streams.find((s) => s.name === button.dataset.stream);
      button.hidden = !target;
      button.addEventListener("click", () => {
        Object.assign(view, { adapter: -1, show: 0 });
        [byId("adapter").value, byId("show").value] = ["-1", "0"];
        relayout();
        stage.focus({ preventScroll: true });
        choose(target, true);
      });
    }
  }

  controls(); layout(); listen(); repaint();
})();
