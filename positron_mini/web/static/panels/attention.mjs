// Where each token looks: one picture per layer and head, and one of them read closely.

import { floats } from "../api.mjs";
import { Card, Note, Panel, Picture, TextArea, TokenLine, html, label, percent, useAnswer, useDark, useEffect, useMemo, useState } from "../ui.mjs";

export const about = {
  id: "attention",
  name: "Attention",
  sentence: "Before a token predicts the next one it looks back: each head in each layer shares out 100 % of its attention among the tokens so far.",
  computedBy: "positron_mini.evaluate.lens.attention_maps",
};

export function View({ lab }) {
  const { model, text } = lab;
  const [at, setAt] = useState({ layer: 0, head: 0 });
  const [query, setQuery] = useState(null);
  const { data, error } = useAnswer("/lab/api/attention", text ? { model: model.id, text } : null, 400);
  const weights = useMemo(() => data && floats(data.weights), [data]);
  const T = data?.tokens.length ?? 0;
  useEffect(() => setQuery(null), [T]);
  const row = Math.min(query ?? T - 1, T - 1);
  const mapOf = (layer, head) => weights.subarray((layer * data.heads + head) * T * T, (layer * data.heads + head + 1) * T * T);
  const layer = Math.min(at.layer, (data?.layers ?? 1) - 1);
  const head = Math.min(at.head, (data?.heads ?? 1) - 1);
  return html`<${Panel} about=${about}>
    <${Card}><${TextArea} name="Text" value=${text} onInput=${lab.setText} rows="2" /><//>
    <${Note} error=${error} />
    ${data &&
    html`<div class="columns is-wide-left">
      <${Card} title=${`Layer ${layer + 1}, head ${head + 1}`} aside=${habit(mapOf(layer, head), T)}>
        <${Look} tokens=${data.tokens} map=${mapOf(layer, head)} row=${row} pick=${setQuery} />
      <//>
      <${Card} title="All heads" aside=${`${data.layers} layers × ${data.heads} heads`}>
        <${Heads} data=${data} mapOf=${mapOf} layer=${layer} head=${head} pick=${setAt} />
        <p class="hint">In each picture a row is a token that looks, a column a token looked at; the stronger the colour, the more attention. Arrow keys move between heads.</p>
      <//>
    </div>`}
  <//>`;
}

/** One head read closely: from the chosen token to the ones it looks at. */
function Look({ tokens, map, row, pick }) {
  const T = tokens.length;
  const seen = Array.from(map.subarray(row * T, row * T + row + 1));
  const strongest = seen.map((weight, i) => ({ weight, i })).sort((a, b) => b.weight - a.weight).slice(0, 5);
  const dark = useDark();
  const look = (token, i) => ({
    kind: `ink ${i > row ? "is-future" : ""}`,
    style: { "--heat": (seen[i] ?? 0).toFixed(3) },
    "aria-label": `${label(token)}${i > row ? ", not yet written" : `, gets ${percent(seen[i])}`}`,
  });
  return html`<${TokenLine} name="Choose the token that looks" className="prose" tokens=${tokens} at=${row} pick=${pick} look=${look} />
    <p class="detail" role="status">“<b>${label(tokens[row])}</b>” looks at</p>
    <ol class="looks">
      ${strongest.map(
        ({ weight, i }) => html`<li><span class="bar-name">${label(tokens[i])}${i === row ? html` <small>itself</small>` : ""}</span>
          <span class="bar-line" style=${{ "--drawn": weight }}><b></b></span><span class="bar-value">${percent(weight)}</span></li>`,
      )}
    </ol>
    <${Picture} class="map" width=${T} height=${T} name="Attention from each token (row) to each token (column)" changes=${[map, row, dark]}
      paint=${(context) => paint(context, map, T, dark, row)} />`;
}

/** The pictures of all heads; one stop of the Tab key, arrow keys inside. */
function Heads({ data, mapOf, layer, head, pick }) {
  const dark = useDark();
  const T = data.tokens.length;
  const move = (event) => {
    const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [0, 0];
    if (down === 0 && right === 0) return;
    event.preventDefault();
    const next = { layer: Math.min(data.layers - 1, Math.max(0, layer + down)), head: Math.min(data.heads - 1, Math.max(0, head + right)) };
    pick(next);
    event.currentTarget.querySelector(`[data-head="${next.layer}-${next.head}"]`).focus();
  };
  return html`<div class="heads" style=${{ "--heads": data.heads }} role="group" aria-label="Heads" onKeyDown=${move}>
    ${Array.from({ length: data.layers }, (_, l) =>
      Array.from({ length: data.heads }, (_, h) => {
        const chosen = l === layer && h === head;
        return html`<button type="button" class="head" key=${`${l}-${h}`} data-head=${`${l}-${h}`} tabindex=${chosen ? 0 : -1} aria-pressed=${chosen}
          aria-label=${`Layer ${l + 1}, head ${h + 1}: ${habit(mapOf(l, h), T)}`} onClick=${() => pick({ layer: l, head: h })}>
          <${Picture} width=${T} height=${T} name="" changes=${[data, dark]} paint=${(context) => paint(context, mapOf(l, h), T, dark)} aria-hidden="true" />
        </button>`;
      }),
    )}
  </div>`;
}

/** What the head does most, in words: the mean share that goes to the token itself, to the one before, to the first. */
function habit(map, T) {
  if (T < 3) return "too little text to tell";
  const mean = (column) => {
    let sum = 0;
    for (let i = 2; i < T; i++) sum += map[i * T + column(i)];
    return sum / (T - 2);
  };
  const found = [
    ["the first token", mean(() => 0)],
    ["the token before", mean((i) => i - 1)],
    ["itself", mean((i) => i)],
  ].sort((a, b) => b[1] - a[1])[0];
  return found[1] < 0.3 ? "spread over many tokens" : `mostly ${found[0]} (${percent(found[1])})`;
}

// from paper to ink in even steps of lightness, so that it also works without colour
const SCALES = {
  light: [[247, 246, 243], [158, 190, 220], [44, 99, 163], [9, 32, 74]],
  dark: [[33, 33, 38], [40, 78, 132], [96, 160, 222], [235, 244, 255]],
};

function paint(context, map, T, dark, row = -1) {
  const scale = dark ? SCALES.dark : SCALES.light;
  const image = context.createImageData(T, T);
  for (let i = 0; i < T * T; i++) {
    const isFuture = i % T > Math.floor(i / T);
    const colour = shade(scale, Math.sqrt(map[i])); // the root lets small shares be seen
    image.data.set([...colour, isFuture ? 0 : row >= 0 && Math.floor(i / T) !== row ? 150 : 255], 4 * i);
  }
  context.putImageData(image, 0, 0);
}

function shade(scale, share) {
  const place = Math.min(0.9999, Math.max(0, share)) * (scale.length - 1);
  const below = Math.floor(place);
  return scale[below].map((value, c) => value + (place - below) * (scale[below + 1][c] - value));
}
