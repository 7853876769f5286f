// The text as the model reads it.

import { Card, Choice, Note, Panel, Stat, TextArea, TokenLine, html, spelled, useAnswer, useState, whole } from "../ui.mjs";

export const about = {
  id: "tokens",
  name: "Tokens",
  sentence: "The model reads neither letters nor words but tokens: pieces that were frequent in the text the tokenizer was trained on.",
  computedBy: "positron_mini.evaluate.lens.token_views",
};

const SHOW = [
  { value: "text", name: "Text" },
  { value: "ids", name: "Ids" },
  { value: "bytes", name: "Bytes" },
];

export function View({ lab }) {
  const [show, setShow] = useState("text");
  const [at, setAt] = useState(null);
  const { data, error } = useAnswer("/lab/api/tokens", lab.text ? { model: lab.model.id, text: lab.text } : null, 120);
  const tokens = data?.tokens ?? [];
  const bytes = tokens.reduce((sum, token) => sum + token.bytes.length / 2, 0);
  const picked = tokens[at];
  return html`<${Panel} about=${about}>
    <${Card}><${TextArea} name="Text" value=${lab.text} onInput=${lab.setText} rows="4" /><//>
    <${Note} error=${error} />
    <div class="stats">
      <${Stat} name="Tokens" value=${whole(tokens.length)} />
      <${Stat} name="Characters" value=${whole([...lab.text].length)} />
      <${Stat} name="Bytes" value=${whole(bytes)} />
      <${Stat} name="Bytes per token" value=${tokens.length ? (bytes / tokens.length).toFixed(2) : "–"} />
      <${Stat} name="Vocabulary" value=${whole(lab.model.vocab_size)} unit="pieces" />
    </div>
    <${Card} title="Token by token" aside=${html`<${Choice} name="Show tokens as" value=${show} options=${SHOW} onChange=${setShow} />`}>
      <${TokenLine} name="Tokens" className=${`as-${show}`} tokens=${tokens} at=${at} pick=${setAt}
        look=${(token, i) => ({ kind: `hue-${i % 4}`, content: inForm(token, show), onMouseEnter: () => setAt(i) })} />
      <p class="detail" role="status">
        ${picked
          ? html`Token ${at + 1} of ${tokens.length}: piece <code>${picked.piece}</code>, id <b>${picked.id}</b>,
              bytes <code>${spaced(picked.bytes)}</code>${KINDS[picked.kind]}`
          : "Point at a token, or walk through them with the arrow keys."}
      </p>
    <//>
  <//>`;
}

const KINDS = {
  text: "",
  byte: ", one of the 256 single bytes that spell what the vocabulary has no piece for",
  control: ", a control token, which no text can spell",
  unknown: ", the token for the unknown",
};

const spaced = (hex) => hex.replace(/(..)(?=.)/g, "$1 ") || "none";

function inForm(token, show) {
  if (show === "ids") return String(token.id);
  return show === "bytes" ? spaced(token.bytes) : spelled(token);
}
