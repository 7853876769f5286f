// The same beginning, the same seed, two checkpoints.

import { call } from "../api.mjs";
import {
  Button, Card, CopyButton, Note, Panel, SAMPLING, SamplingControls, Select, StopButton, TextArea, html, percent, useState, useStored, useWork,
} from "../ui.mjs";

export const about = {
  id: "compare",
  name: "Compare",
  sentence: "Two checkpoints get the same text and the same seed, so that every difference in what they write is a difference in what they learned.",
  computedBy: "positron_mini.generate.stream",
};

export function View({ lab }) {
  const [prompt, setPrompt] = useStored("positron.compared", "Once upon a time, there was a little girl who");
  const [settings, setSettings] = useStored("positron.compare", { ...SAMPLING, max_tokens: 80 });
  const [pair, setPair] = useState(() => [lab.models.at(-1).id, lab.model.id]);
  const [answers, setAnswers] = useState([null, null]); // each with the prompt that it goes on from
  const { busy, error, start, stop } = useWork();

  const options = lab.models.map((one) => ({ value: one.id, name: one.run === one.id ? one.id : `${one.run}, ${one.name}` }));
  const pick = (side) => (id) => {
    stop(); // what is being written is another checkpoint's
    setPair((old) => (side === 0 ? [id, old[1]] : [old[0], id]));
    setAnswers((old) => (side === 0 ? [null, old[1]] : [old[0], null]));
  };
  const write = async (signal) => {
    setAnswers([null, null]);
    for (const side of [0, 1]) {
      const body = { model: pair[side], messages: [{ role: "user", content: prompt }], ...settings, logprobs: true };
      const answer = { ...(await call("/v1/chat/completions", body, signal)), prompt };
      setAnswers((old) => (side === 0 ? [answer, null] : [old[0], answer]));
    }
  };
  const texts = answers.map((answer) => answer?.choices[0].message.content ?? null);
  const asked = (side) => answers[side].prompt + (lab.models.find((one) => one.id === pair[side])?.is_chat ? "\n" : ""); // a base model goes on in the same line
  const shared = texts[0] !== null && texts[1] !== null ? common(texts[0], texts[1]) : 0;
  return html`<${Panel} about=${about}>
    <${Card}>
      <${TextArea} name="Beginning or question" value=${prompt} onInput=${setPrompt} rows="2" />
      <${SamplingControls} settings=${settings} onChange=${setSettings} />
      <div class="row">
        ${busy
          ? html`<${StopButton} kind="main" stop=${stop} />`
          : html`<${Button} kind="main" disabled=${!prompt.trim()} onClick=${() => start(write)}>Write both<//>`}
        ${shared > 0 && html`<span class="hint" role="status">${
          shared === texts[0].length && shared === texts[1].length ? "Both wrote the same text." : `They differ after ${shared} characters.`
        }</span>`}
      </div>
    <//>
    <${Note} error=${error} />
    <div class="columns is-even">
      ${["A", "B"].map(
        (side, i) => html`<${Card} title=${side} className="side" aside=${texts[i] !== null && html`<${CopyButton} text=${texts[i]} />`}>
          <${Select} name=${`Checkpoint ${side}`} hideName value=${pair[i]} options=${options} onChange=${pick(i)} />
          <p class="prose written-by" aria-label=${`What ${side} writes`} aria-busy=${busy && answers[i] === null}>${texts[i] === null
            ? html`<span class="hint">${busy ? "writing …" : "nothing yet"}</span>`
            : html`<span class="given">${asked(i)}</span><span class="shared">${texts[i].slice(0, shared)}</span><span class=${shared > 0 ? "own" : ""}>${texts[i].slice(shared)}</span>`}</p>
          ${answers[i] && html`<p class="hint">${sureness(answers[i])}</p>`}
        <//>`,
      )}
    </div>
  <//>`;
}

/** How many characters two texts share at their beginning. */
function common(a, b) {
  let n = 0;
  while (n < a.length && n < b.length && a[n] === b[n]) n += 1;
  return n;
}

function sureness(answer) {
  const { usage, choices } = answer;
  const logprobs = choices[0].logprobs.content.map((token) => token.logprob);
  const mean = logprobs.reduce((sum, value) => sum + value, 0) / Math.max(1, logprobs.length);
  return `${usage.completion_tokens} tokens, ${percent(Math.exp(mean))} likely each on average, ${choices[0].finish_reason === "stop" ? "ended by the model" : "cut at the length limit"}`;
}
