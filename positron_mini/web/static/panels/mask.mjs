// What fine-tuning teaches, and what it only lets the model read.

import { Card, Note, Panel, Stat, TextArea, html, percent, spelled, useAnswer, useState, Button } from "../ui.mjs";

export const about = {
  id: "mask",
  name: "Fine-tuning mask",
  sentence: "Fine-tuning reads the whole conversation but learns to write only the underlined tokens: the answers, and where each one ends.",
  computedBy: "positron_mini.evaluate.lens.fine_tuning_mask",
};

const EXAMPLES = [
  ["instruction", { instruction: "Explain gravity to a child.", output: "The earth pulls things. That is why a ball falls down." }],
  ["with input", { instruction: "Who has the ball?", input: "Tom has a red ball. Lily has a cake.", output: "Tom has the ball." }],
  ["prompt", { prompt: "Tell me a short story.", completion: "Once there was a frog. He liked rain. The end." }],
  [
    "messages",
    {
      messages: [
        { role: "system", content: "You are kind." },
        { role: "user", content: "Who are you?" },
        { role: "assistant", content: "I am a small model." },
        { role: "user", content: "Are you wise?" },
        { role: "assistant", content: "No, but I like stories." },
      ],
    },
  ],
];

export function View({ lab }) {
  const [row, setRow] = useState(JSON.stringify(EXAMPLES[0][1]));
  const { data, error } = useAnswer("/lab/api/mask", row.trim() ? { model: lab.model.id, row } : null);
  const tokens = data?.tokens ?? [];
  const trained = tokens.filter((token) => token.trained).length;
  return html`<${Panel} about=${about}>
    <${Card}>
      <${TextArea} name="One line of a JSONL file" value=${row} onInput=${setRow} rows="4" class="mono" />
      <div class="row">
        <span class="hint">Examples</span>
        ${EXAMPLES.map(([name, value]) => html`<${Button} kind="quiet" onClick=${() => setRow(JSON.stringify(value))}>${name}<//>`)}
      </div>
    <//>
    <${Note} error=${error} />
    <div class="stats">
      <${Stat} name="Learned" value=${trained} unit="tokens" />
      <${Stat} name="Only read" value=${tokens.length - trained} unit="tokens" />
      <${Stat} name="Share learned" value=${tokens.length ? percent(trained / tokens.length) : "–"} />
      <${Stat} name="Room in the context" value=${lab.model.context_len - tokens.length} unit="tokens" />
    </div>
    <${Card} title="As the model reads it" aside=${html`<span class="key"><i class="swatch is-trained"></i>learned</span><span class="key"><i class="swatch"></i>only read</span>`}>
      <p class="prose masked" aria-label="Tokens of the conversation">
        ${tokens.map(
          (token) => html`<span class=${`${token.trained ? "is-trained" : "is-read"} is-${token.kind}`} title=${title(token)}>${spelled(token)}</span>`,
        )}
      </p>
    <//>
  <//>`;
}

const title = (token) => `${token.piece}, id ${token.id}, ${token.trained ? "learned" : "only read"}`;
