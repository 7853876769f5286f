// What all panels share: the frame, the controls, tokens as text, numbers as text. Text enters the page as text nodes only.

import { html, render, useEffect, useLayoutEffect, useRef, useState } from "/vendor/htm/standalone.module.js";
import { call } from "./api.mjs";

export { html };
export * from "/vendor/htm/standalone.module.js";

// --- numbers ----------------------------------------------------------------------------------------------------------------------------

/** 12,345 */
export const whole = (value) => Math.round(value).toLocaleString("en-US");

/** 0.1234 -> 12 %, 0.00123 -> 0.12 %, 1e-9 -> < 0.01 % */
export function percent(share) {
  const value = 100 * share;
  if (value === 0) return "0 %";
  if (value < 0.01) return "< 0.01 %";
  if (value < 1) return `${value.toFixed(2)} %`;
  return `${value < 10 ? value.toFixed(1) : value.toFixed(0)} %`;
}

/** 75 -> 1 min 15 s */
export function duration(seconds) {
  const rounded = Math.round(seconds);
  if (rounded < 60) return `${rounded} s`;
  const minutes = Math.floor(rounded / 60);
  if (minutes < 60) return `${minutes} min ${rounded % 60} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export const bits = (nats) => nats / Math.LN2;

// --- drawing ----------------------------------------------------------------------------------------------------------------------------

/** Show `App` in `root`, and draw it anew at the end of every event that a person makes: what a handler sees is what was typed or chosen
 * before, even if another event follows at once. The library alone would draw a moment later, and handlers would read the last picture.
 * Fields tell of every input: `change` comes too late for a field whose value is drawn. */
export function show(App, root) {
  const draw = () => render(html`<${App} />`, root);
  draw();
  for (const type of ["input", "click", "submit", "keydown"]) addEventListener(type, draw);
}

// --- state ------------------------------------------------------------------------------------------------------------------------------

/** State that outlives the page, under `name` in this browser. A value that cannot be read or kept is no error. */
export function useStored(name, initial) {
  const [value, set] = useState(() => {
    try {
      return JSON.parse(localStorage.getItem(name)) ?? initial;
    } catch {
      return initial;
    }
  });
  useLayoutEffect(() => { // not after painting: a panel that is left at once would not keep it
    try {
      localStorage.setItem(name, JSON.stringify(value));
    } catch {
      // the browser's store is full or switched off: the value lives as long as the page
    }
  }, [value]);
  return [value, set];
}

/** The answer to a POST of `body` (null: nothing is asked), asked again when it changes and has rested for `delay` ms. */
export function useAnswer(path, body, delay = 250) {
  const key = body === null ? null : JSON.stringify(body);
  const [state, set] = useState({ data: null, error: null, busy: false });
  useEffect(() => {
    if (key === null) {
      set({ data: null, error: null, busy: false });
      return undefined;
    }
    const abort = new AbortController();
    set((old) => ({ ...old, busy: true }));
    const timer = setTimeout(async () => {
      try {
        const data = await call(path, JSON.parse(key), abort.signal);
        set({ data, error: null, busy: false });
      } catch (error) {
        if (error.name !== "AbortError") set({ data: null, error, busy: false });
      }
    }, delay);
    return () => {
      clearTimeout(timer);
      abort.abort();
    };
  }, [path, key]);
  return state;
}

/** One piece of work at a time: `start(work)` calls `work(signal)` and stops the one before, of which nothing is heard any more. */
export function useWork() {
  const [state, set] = useState({ busy: false, error: null });
  const running = useRef(null);
  const stop = () => {
    running.current?.abort();
    running.current = null;
    set({ busy: false, error: null });
  };
  const start = (work) => {
    running.current?.abort();
    const abort = new AbortController();
    running.current = abort;
    set({ busy: true, error: null });
    const end = (error) => running.current === abort && set({ busy: false, error });
    return work(abort.signal).then(() => end(null), end);
  };
  useEffect(() => () => running.current?.abort(), []);
  return { ...state, start, stop };
}

// --- the frame --------------------------------------------------------------------------------------------------------------------------

/** A panel: its name, the sentence that explains it, its contents, and where its numbers come from. */
export function Panel({ about, children }) {
  return html`<section class="panel" aria-labelledby="panel-name" data-panel=${about.id}>
    <header class="panel-head">
      <h1 id="panel-name">${about.name}</h1>
      <p class="sentence">${about.sentence}</p>
      <p class="by">computed by <code>${about.computedBy}</code></p>
    </header>
    ${children}
  </section>`;
}

export function Note({ error, children }) {
  if (!error && !children) return null;
  return html`<p class=${`note ${error ? "is-error" : ""}`} role=${error ? "alert" : "note"}>${error ? error.message : children}</p>`;
}

export function Card({ title, aside, children, className = "" }) {
  return html`<div class=${`card ${className}`}>
    ${title && html`<div class="card-head"><h2>${title}</h2>${aside && html`<span class="aside">${aside}</span>`}</div>`} ${children}
  </div>`;
}

/** One number with its name and unit. */
export function Stat({ name, value, unit }) {
  return html`<div class="stat"><span class="stat-name">${name}</span><span class="stat-value">${value}${unit && html`<small> ${unit}</small>`}</span></div>`;
}

// --- controls ---------------------------------------------------------------------------------------------------------------------------

export function Button({ children, kind = "", ...rest }) {
  return html`<button type="button" class=${`button ${kind}`} ...${rest}>${children}</button>`;
}

/** What takes the place of the button that began something. The second half of a double click there is no wish to stop. */
export function StopButton({ children = "Stop", stop, ...rest }) {
  return html`<${Button} onClick=${once(stop)} ...${rest}>${children}<//>`;
}

/** `act` for the first click only, where another thing lies under the second half of a double click. */
export const once = (act) => (event) => event.detail < 2 && act(event);

export function Slider({ name, value, min, max, step, show = String, hint, onChange }) {
  return html`<label class="slider" title=${hint}>
    <span class="slider-name">${name}</span>
    <output>${show(value)}</output>
    <input type="range" aria-label=${name} aria-valuetext=${show(value)} min=${min} max=${max} step=${step} value=${value}
      onInput=${(event) => onChange(Number(event.currentTarget.value))} />
  </label>`;
}

/** A whole number. While it is typed the field keeps what is typed, and `onChange` gets each number within the limits. */
export function NumberField({ name, value, min, max, hint, onChange }) {
  const [typed, setTyped] = useState(null);
  const type = (event) => {
    const given = event.currentTarget.valueAsNumber;
    setTyped(event.currentTarget.value);
    if (Number.isInteger(given)) onChange(Math.min(max, Math.max(min, given)));
  };
  return html`<label class="field" title=${hint}><span>${name}</span><input type="number" min=${min} max=${max} step="1" value=${typed ?? value}
    onInput=${type} onBlur=${() => setTyped(null)} /></label>`;
}

export function Select({ name, value, options, onChange, hideName = false }) {
  return html`<label class="field"><span class=${hideName ? "unseen" : ""}>${name}</span>
    <select aria-label=${name} value=${value} onInput=${(event) => onChange(event.currentTarget.value)}>
      ${options.map((option) => html`<option value=${option.value} selected=${option.value === value}>${option.name}</option>`)}
    </select>
  </label>`;
}

/** A few choices of which one holds, as buttons in a row. */
export function Choice({ name, value, options, onChange }) {
  return html`<div class="choice" role="group" aria-label=${name}>
    ${options.map(
      (option) => html`<button type="button" aria-pressed=${option.value === value} onClick=${() => onChange(option.value)}>${option.name}</button>`,
    )}
  </div>`;
}

export function TextArea({ name, value, rows = 3, onInput, ...rest }) {
  return html`<label class="field"><span>${name}</span>
    <textarea rows=${rows} spellcheck="false" value=${value} onInput=${(event) => onInput(event.currentTarget.value)} ...${rest}></textarea>
  </label>`;
}

export function CopyButton({ text, name = "Copy" }) {
  const [done, setDone] = useState(false);
  const copy = async () => {
    await copyText(text);
    setDone(true);
    setTimeout(() => setDone(false), 1200);
  };
  return html`<${Button} kind="quiet" onClick=${copy} aria-live="polite">${done ? "Copied" : name}<//>`;
}

async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea"); // http on another host than localhost has no clipboard object
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  return area.remove();
}

export const SAMPLING = { temperature: 0.7, top_k: 0, top_p: 1, min_p: 0, max_tokens: 200, seed: 0 };

/** The sliders of the sampler. `only` names the ones to show. */
export function SamplingControls({ settings, onChange, only = Object.keys(SAMPLING) }) {
  const set = (name) => (value) => onChange({ ...settings, [name]: value });
  const fixed = (digits) => (value) => value.toFixed(digits);
  const all = {
    temperature: html`<${Slider} name="Temperature" value=${settings.temperature} min="0" max="2" step="0.05" show=${fixed(2)}
      hint="0 always takes the likeliest token; 1 draws from the model's own probabilities" onChange=${set("temperature")} />`,
    top_k: html`<${Slider} name="Top-k" value=${settings.top_k} min="0" max="100" step="1" show=${(k) => (k === 0 ? "all" : String(k))}
      hint="keep only the k likeliest tokens" onChange=${set("top_k")} />`,
    top_p: html`<${Slider} name="Top-p" value=${settings.top_p} min="0.05" max="1" step="0.01" show=${fixed(2)}
      hint="keep the likeliest tokens that make up this share of the probability" onChange=${set("top_p")} />`,
    min_p: html`<${Slider} name="Min-p" value=${settings.min_p} min="0" max="0.5" step="0.01" show=${fixed(2)}
      hint="drop tokens below this share of the likeliest one's probability" onChange=${set("min_p")} />`,
    max_tokens: html`<${Slider} name="Length" value=${settings.max_tokens} min="10" max="500" step="10" show=${(n) => `${n} tokens`}
      hint="tokens to write at most" onChange=${set("max_tokens")} />`,
    seed: html`<${NumberField} name="Seed" value=${settings.seed} min="0" max="999999999" hint="the same seed draws the same tokens"
      onChange=${set("seed")} />`,
  };
  return html`<div class="controls">${only.map((name) => all[name])}</div>`;
}

// --- tokens -----------------------------------------------------------------------------------------------------------------------------

/** How a token is spelled in a line of text: its characters, a mark for a line break, its byte, or its name. */
export function spelled(token) {
  if (token.text === null) return token.kind === "byte" ? `⟨${token.bytes}⟩` : token.piece;
  return token.text.replaceAll("\n", "↵\n").replaceAll("\t", "→");
}

/** The token in one line, its outer spaces made visible. */
export function label(token) {
  const text = spelled(token).replaceAll("\n", "");
  return text.replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length)) || "∅";
}

/** Tokens as a line of text, each a button: one stop of the Tab key, arrow keys inside. `look(token, i)` says how one is shown. */
export function TokenLine({ name, tokens, at, pick, look, className = "" }) {
  const line = useRef(null);
  const stop = at !== null && at < tokens.length ? at : 0;
  const move = (event) => {
    const to = { ArrowLeft: stop - 1, ArrowUp: stop - 1, ArrowRight: stop + 1, ArrowDown: stop + 1, Home: 0, End: tokens.length - 1 }[event.key];
    if (to === undefined || !tokens[to]) return;
    event.preventDefault();
    line.current.querySelectorAll("button")[to].focus();
  };
  return html`<div class=${`tokens ${className}`} role="group" aria-label=${name} ref=${line} onKeyDown=${move}>
    ${tokens.map((token, i) => {
      const { content = spelled(token), kind = "", ...rest } = look(token, i);
      if (typeof content === "string" && !content.trim()) rest["aria-label"] ??= label(token); // blanks alone are no name
      return html`<button type="button" key=${i} class=${`token is-${token.kind} ${kind}`} aria-pressed=${i === at} tabindex=${i === stop ? 0 : -1}
        onFocus=${() => pick(i)} onClick=${() => pick(i)} ...${rest}>${content}</button>${token.text?.includes("\n") && html`<br />`}`;
    })}
  </div>`;
}

/** A canvas that `paint(context)` fills; painted again when `changes` do. */
export function Picture({ width, height, paint, changes, name, ...rest }) {
  const canvas = useRef(null);
  useEffect(() => paint(canvas.current.getContext("2d")), changes);
  return html`<canvas ref=${canvas} width=${width} height=${height} role="img" aria-label=${name} ...${rest}></canvas>`;
}

/** Whether the page is shown dark; a change renders again. */
export function useDark() {
  const query = useRef(matchMedia("(prefers-color-scheme: dark)")).current;
  const [dark, set] = useState(query.matches);
  useEffect(() => {
    const changed = () => set(query.matches);
    query.addEventListener("change", changed);
    return () => query.removeEventListener("change", changed);
  }, []);
  return dark;
}
