// What the model would say if it stopped after each layer.

import { Card, Note, Panel, TextArea, html, label, percent, useAnswer, useState } from "../ui.mjs";

export const about = {
  id: "logit-lens",
  name: "Logit lens",
  sentence: "Read upwards how a prediction forms: after each layer, the token that the model would write next if that layer were its last.",
  computedBy: "positron_mini.evaluate.lens.logit_lens",
};

export function View({ lab }) {
  const { model, text } = lab;
  const [at, setAt] = useState(null);
  const { data, error } = useAnswer("/lab/api/logit_lens", text ? { model: model.id, text, k: 5 } : null, 400);
  const layers = data?.layers ?? [];
  const place = at && at.layer < layers.length && at.t < data.tokens.length ? at : data && { layer: layers.length - 1, t: data.tokens.length - 1 };
  // one stop of the Tab key, arrow keys inside
  const move = (event) => {
    const [up, right] = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [0, 0];
    const next = event.currentTarget.querySelector(`[data-cell="${place.layer + up}-${place.t + right}"]`);
    if ((up === 0 && right === 0) || !next) return;
    event.preventDefault();
    setAt({ layer: place.layer + up, t: place.t + right });
    next.focus();
  };
  return html`<${Panel} about=${about}>
    <${Card}><${TextArea} name="Text" value=${text} onInput=${lab.setText} rows="2" /><//>
    <${Note} error=${error} />
    ${data &&
    html`<${Card} title="After each layer, the likeliest next token" aside=${html`<span class="legend">${[0, 0.25, 0.5, 0.75, 1].map(
        (p) => html`<i class="ink" style=${{ "--heat": p }}>${100 * p}</i>`,
      )} % sure</span>`}>
      <div class="scroll" role="region" aria-label="Predictions after each layer">
        <table class="lens" onKeyDown=${move}>
          <tbody>
            ${layers
              .map(
                (layer, l) => html`<tr key=${l}><th scope="row">${nameOf(l, layers.length)}</th>
                  ${layer.top.map((guesses, t) => {
                    const chosen = place.layer === l && place.t === t;
                    const right = data.tokens[t + 1]?.id === guesses[0].token.id;
                    return html`<td key=${t}><button type="button" class=${`ink cell ${right ? "is-right" : ""}`} aria-pressed=${chosen} tabindex=${chosen ? 0 : -1} data-cell=${`${l}-${t}`} style=${{ "--heat": guesses[0].p.toFixed(3) }}
                      aria-label=${`after ${label(data.tokens[t])}, ${nameOf(l, layers.length)}: ${label(guesses[0].token)}, ${percent(guesses[0].p)}${right ? ", which is what follows" : ""}`}
                      onClick=${() => setAt({ layer: l, t })}>${label(guesses[0].token)}</button></td>`;
                  })}</tr>`,
              )
              .reverse()}
          </tbody>
          <tfoot>
            <tr><th scope="row">Text</th>${data.tokens.map((token, t) => html`<td key=${t}><span class="read">${label(token)}</span></td>`)}</tr>
          </tfoot>
        </table>
      </div>
      <${Detail} data=${data} place=${place} />
      <p class="hint">A dot marks a guess that is the token that really follows. Arrow keys move from guess to guess.</p>
    <//>`}
  <//>`;
}

const nameOf = (l, count) => (l === 0 ? "Embedding" : l === count - 1 ? `Layer ${l}, final` : `Layer ${l}`);

function Detail({ data, place }) {
  const layer = data.layers[place.layer];
  return html`<div class="detail" role="status">
    <p>After “<b>${label(data.tokens[place.t])}</b>”, ${nameOf(place.layer, data.layers.length).toLowerCase()}: entropy ${layer.entropy[place.t].toFixed(1)} bits;
      the final choice has ${percent(layer.final[place.t])} here.</p>
    <ol class="looks">
      ${layer.top[place.t].map(
        (guess) => html`<li><span class="bar-name">${label(guess.token)}</span><span class="bar-line" style=${{ "--drawn": guess.p }}><b></b></span><span class="bar-value">${percent(guess.p)}</span></li>`,
      )}
    </ol>
  </div>`;
}
