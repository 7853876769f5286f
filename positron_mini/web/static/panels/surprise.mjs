// How unexpected each token of a text is, for one model and for a run as it learned.

import { call } from "../api.mjs";
import {
  Button, Card, Note, Panel, Slider, Stat, StopButton, TextArea, TokenLine, bits, html, label, percent, spelled, useAnswer, useState, useWork, whole,
} from "../ui.mjs";

export const about = {
  id: "surprise",
  name: "Surprise",
  sentence: "The loss of a text, token by token: a word the model saw coming stays pale, a word it would not have guessed glows.",
  computedBy: "positron_mini.evaluate.lens.surprise",
};

const FULL = 12; // bits at which the colour is strongest: one in 4,096

export function View({ lab }) {
  const { model, text } = lab;
  const [at, setAt] = useState(null);
  const { data, error, busy } = useAnswer("/lab/api/surprise", text.trim() ? { model: model.id, text } : null);
  const tokens = data?.tokens ?? [];
  const nats = tokens.reduce((sum, token) => sum + token.nats, 0);
  const bytes = tokens.reduce((sum, token) => sum + token.bytes.length / 2, 0);
  const picked = tokens[at];
  return html`<${Panel} about=${about}>
    <${Card}><${TextArea} name="Text" value=${text} onInput=${lab.setText} rows="3" /><//>
    <${Note} error=${error} />
    <div class="stats" aria-busy=${busy}>
      <${Stat} name="Loss" value=${tokens.length ? (nats / tokens.length).toFixed(3) : "–"} unit="nats per token" />
      <${Stat} name="In bits" value=${bytes ? (bits(nats) / bytes).toFixed(3) : "–"} unit="per byte" />
      <${Stat} name="Like guessing among" value=${tokens.length ? whole(Math.exp(nats / tokens.length)) : "–"} unit="tokens" />
    </div>
    <${Card} title="Token by token" aside=${html`<${Legend} />`}>
      <${TokenLine} name="Tokens with their surprise" className="prose heated" tokens=${tokens} at=${at} pick=${setAt} look=${(token, i) => looks(token, () => setAt(i))} />
      <p class="detail" role="status">
        ${picked
          ? html`“<b>${label(picked)}</b>” had a probability of <b>${percent(Math.exp(-picked.nats))}</b>: ${bits(picked.nats).toFixed(2)} bits, ${picked.nats.toFixed(3)} nats.`
          : "The small number is the surprise in bits: 1 bit is a coin toss, 10 bits are one chance in a thousand."}
      </p>
    <//>
    <${Milestones} lab=${lab} key=${model.run} />
  <//>`;
}

function looks(token, point) {
  const size = bits(token.nats);
  const content = html`${spelled(token)}<sub aria-hidden="true">${size.toFixed(size < 10 ? 1 : 0)}</sub>`;
  return { kind: "heat", style: heat(token.nats), content, "aria-label": `${label(token)}, ${size.toFixed(1)} bits`, onMouseEnter: point };
}

const heat = (nats) => ({ "--heat": Math.min(1, bits(nats) / FULL).toFixed(3) });

function Legend() {
  return html`<span class="legend" aria-label="From pale, 0 bits, to strong, 12 bits or more">
    ${[0, 3, 6, 9, 12].map((value) => html`<i class="heat" style=${{ "--heat": value / FULL }}>${value === 12 ? "12+" : value}</i>`)} bits</span>`;
}

/** The same text read by every saved step of the run: when each word was learned. */
function Milestones({ lab }) {
  const steps = lab.models.filter((one) => one.run === lab.model.run && one.step !== null && one.id.includes("@")).sort((a, b) => a.step - b.step);
  const [readings, setReadings] = useState([]);
  const [asked, setAsked] = useState(null); // the text that was read
  const { busy, error, start, stop } = useWork();
  const [limit, setLimit] = useState(3);
  if (steps.length < 2) {
    return html`<${Card} title="When was it learned?"><p class="hint">This needs a run with several saved steps; choose one at the top of the page.</p><//>`;
  }
  const read = async (signal) => {
    setReadings([]);
    setAsked(lab.text);
    for (const step of steps) {
      const { tokens } = await call("/lab/api/surprise", { model: step.id, text: lab.text }, signal);
      setReadings((old) => [...old, { step: step.step, words: wordsOf(tokens) }]);
    }
  };
  const stale = asked !== null && asked !== lab.text;
  const words = readings.at(-1)?.words ?? [];
  const learned = words.map((_, i) => learnedAt(readings, i, limit));
  return html`<${Card} title="When was it learned?" aside=${`${steps.length} saved steps of ${lab.model.run}`}>
    <div class="row">
      ${busy
        ? html`<${StopButton} stop=${stop}>Stop at ${readings.length} of ${steps.length}<//>`
        : html`<${Button} kind="main" disabled=${lab.loading || !lab.text.trim()} onClick=${() => start(read)}>Read the text at every saved step<//>`}
      ${readings.length > 0 &&
      html`<${Slider} name="Known below" value=${limit} min="0.5" max="10" step="0.5" show=${(value) => `${value} bits a word`} onChange=${setLimit} />`}
    </div>
    <${Note} error=${error} />
    ${readings.length > 0 &&
    html`<p class="prose learned" aria-label="Words and the step from which they were known">
        ${words.map(
          (word, i) => html`<span class=${`word ${learned[i] === null ? "is-never" : ""}`} style=${{ "--when": place(steps, learned[i]) }}>${word.text}<sub>${
            learned[i] === null ? "not yet" : whole(learned[i])
          }</sub></span>`,
        )}
      </p>
      ${stale && html`<p class="hint">The text has changed since; read it again.</p>`}
      <div class="scroll" tabindex="0" role="region" aria-label="The text at every step">
        <table class="strips">
          <thead><tr><th scope="col">Step</th><th scope="col">Bits per word</th><th scope="col">Text</th></tr></thead>
          <tbody>
            ${readings.map((reading) => {
              const total = reading.words.reduce((sum, word) => sum + word.nats, 0);
              return html`<tr key=${reading.step}><th scope="row">${whole(reading.step)}</th><td>${(bits(total) / reading.words.length).toFixed(1)}</td>
                <td class="prose">${reading.words.map((word) => html`<span class="heat" style=${heat(word.nats)} title=${`${bits(word.nats).toFixed(1)} bits`}>${word.text}</span>`)}</td></tr>`;
            })}
          </tbody>
        </table>
      </div>`}
  <//>`;
}

/** Tokens joined to words, their surprises added. A word begins with a space or a line break. */
function wordsOf(tokens) {
  const words = [];
  for (const token of tokens) {
    const text = spelled(token);
    const begins = words.length === 0 || /^\s|^↵/.test(text);
    if (begins) words.push({ text, nats: token.nats });
    else {
      words.at(-1).text += text;
      words.at(-1).nats += token.nats;
    }
  }
  return words;
}

/** The first step from which word `i` stayed below `limit` bits; null if it did not. */
export function learnedAt(readings, i, limit) {
  let since = null;
  for (const { step, words } of readings) {
    if (bits(words[i].nats) > limit) since = null;
    else since ??= step;
  }
  return since;
}

const place = (steps, step) => (step === null ? 1 : steps.findIndex((one) => one.step === step) / Math.max(1, steps.length - 1)).toFixed(3);
