// One step of writing, slowly: the bars are what the sampler chooses from, a click chooses, the choices grow into a tree.

import { call, floats } from "../api.mjs";
import { distribution, draw, largest, softmax } from "../sampling.mjs";
import {
  Button, Card, Choice, Note, Panel, SAMPLING, SamplingControls, TextArea, html, label, percent, spelled, useEffect, useMemo, useRef, useState, useStored, whole,
} from "../ui.mjs";

export const about = {
  id: "next-token",
  name: "Next token",
  sentence: "A model does one thing: it gives every token a probability of coming next, and every choice leads to another story.",
  computedBy: "positron_mini.evaluate.lens.next_token_distribution",
};

const SHOWN = 20;
const READ_AS = [
  { value: false, name: "as a text" },
  { value: true, name: "as a question" },
];
const ROOT = "0";

export function View({ lab }) {
  const { model } = lab;
  const [prompt, setPrompt] = useStored("positron.prompt", "Once upon a time, there was a little");
  const [settings, setSettings] = useStored("positron.next", SAMPLING);
  const [wanted, setWanted] = useStored("positron.asked", false);
  const as_question = wanted && model.is_chat;
  const start = JSON.stringify([model.id, prompt, as_question]);
  const [{ tree, at, pending }, grow] = useTree(start);
  const [step, setStep] = useState({ data: null, error: null, busy: false });

  const path = pathTo(tree, at);
  const then = path.map((key) => tree[key].token.id);
  const ended = then.length > 0 && model.end_ids.includes(then.at(-1));

  useEffect(() => {
    const abort = new AbortController();
    setStep((old) => ({ ...old, busy: true }));
    const ask = async () => {
      try {
        const data = await call("/lab/api/next", { model: model.id, text: prompt, then, top: 200, as_question }, abort.signal);
        const logits = floats(data.logits);
        for (const id of model.banned_ids) logits[id] = -Infinity; // the sampler never draws these
        setStep({ data: { ...data, logits, at, start }, error: null, busy: false });
      } catch (error) {
        if (error.name !== "AbortError") setStep({ data: null, error, busy: false });
      }
    };
    const timer = setTimeout(ask, at === ROOT ? 250 : 0);
    return () => {
      clearTimeout(timer);
      abort.abort();
    };
  }, [start, at]);

  const data = step.data?.at === at && step.data?.start === start ? step.data : null;
  const bars = useMemo(() => data && barsOf(data, settings), [data, settings]);

  /** Go to the token `id`, grown where it is new; `left` more are then drawn. */
  const choose = (id, token, left = 0) => {
    const known = tree[at].children.find((key) => tree[key].token.id === id);
    if (known) return grow({ at: known, pending: left });
    const key = `${Object.keys(tree).length}`;
    const node = { token, p: bars.drawn[id], own: bars.own[id], parent: at, children: [] };
    return grow({ tree: { ...tree, [at]: { ...tree[at], children: [...tree[at].children, key] }, [key]: node }, at: key, pending: left });
  };

  useEffect(() => {
    if (ended && pending > 0) grow({ pending: 0 });
    if (pending === 0 || !bars || ended || lab.loading) return undefined;
    let current = true;
    const id = draw(bars.drawn, Math.random());
    const known = data.candidates.find((one) => one.id === id);
    const named = known ? Promise.resolve(known) : call("/lab/api/pieces", { model: model.id, ids: [id] }).then((answer) => answer.tokens[0]);
    named.then(
      (token) => current && choose(id, token, pending - 1),
      () => current && grow({ pending: 0 }),
    );
    return () => {
      current = false;
    };
  }, [bars, pending, ended, lab.loading]);

  const go = (key) => grow({ at: key, pending: 0 });
  const chance = path.reduce((product, key) => product * tree[key].own, 1);

  return html`<${Panel} about=${about}>
    <${Card}>
      <${TextArea} name="Beginning" value=${prompt} onInput=${setPrompt} rows="2" />
      <div class="row">
        <${Button} kind="main" disabled=${ended || lab.loading} onClick=${() => grow({ pending: 1 })}>Draw a token<//>
        <${Button} disabled=${ended || lab.loading} onClick=${() => grow({ pending: 10 })}>Draw ten<//>
        <${Button} disabled=${at === ROOT} onClick=${() => go(tree[at].parent)}>Back<//>
        <${Button} disabled=${at === ROOT} onClick=${() => go(ROOT)}>To the start<//>
        ${model.is_chat && html`<${Choice} name="How the model reads the beginning" value=${as_question} options=${READ_AS} onChange=${setWanted} />`}
      </div>
    <//>
    <${Note} error=${step.error} />
    <div class="columns">
      <${Card} title="What comes next" aside=${bars && `${whole(bars.kept)} of ${whole(data.logits.length)} tokens can be drawn`}>
        <${SamplingControls} settings=${settings} onChange=${setSettings} only=${["temperature", "top_k", "top_p", "min_p"]} />
        ${ended
          ? html`<p class="hint">The story ends here. Go back to try another way.</p>`
          : html`<${Bars} bars=${bars} model=${model} choose=${choose} />`}
      <//>
      <div>
        <${Card} title="The story so far" aside=${path.length > 0 && html`<span>the model itself would write this once in ${odds(chance)}</span>`}>
          <p class="prose" aria-label="The story so far" aria-live="polite"><span class="given">${as_question ? `${prompt}\n` : prompt}</span>${path.map(
            (key) => html`<span class="written">${model.end_ids.includes(tree[key].token.id) ? " ■" : spelled(tree[key].token)}</span>`,
          )}<span class="caret" aria-hidden="true"></span></p>
        <//>
        <${Card} title="The tree of stories" aside=${`${Object.keys(tree).length - 1} tokens`}>
          ${tree[ROOT].children.length === 0
            ? html`<p class="hint">The tokens you choose appear here. Go back to one and choose another to grow a branch.</p>`
            : html`<div class="tree"><${Branch} tree=${tree} keys=${tree[ROOT].children} at=${at} path=${path} ends=${model.end_ids} go=${go} /></div>`}
        <//>
      </div>
    </div>
  <//>`;
}

const SEED = { tree: { [ROOT]: { children: [] } }, at: ROOT, pending: 0 };

/** The tree that grows from `start`, where in it one stands, how many tokens are still to be drawn; and a function that changes some of it.
 * Another start is another tree from its first picture on, so that what is asked of the new one is never undone with the old one. */
function useTree(start) {
  const [held, hold] = useState({ start, ...SEED });
  const own = (one) => (one.start === start ? one : { start, ...SEED });
  const newest = useRef(start);
  newest.current = start;
  return [own(held), (changes) => newest.current === start && hold((old) => ({ ...own(old), ...changes }))]; // the late word of an old tree is lost
}

function odds(chance) {
  const times = 1 / chance;
  if (!Number.isFinite(times)) return "more times than can be counted";
  if (times < 1e6) return times < 10 ? times.toFixed(1) : whole(times);
  return html`10<sup>${Math.round(Math.log10(times))}</sup>`;
}

/** The likeliest tokens with their probabilities, the model's own and those the sampler draws from. */
function barsOf(data, settings) {
  const own = softmax(data.logits);
  const drawn = distribution(data.logits, settings);
  const top = largest(data.logits, SHOWN);
  let kept = 0;
  for (const p of drawn) if (p > 0) kept += 1;
  const shown = top.map((id) => ({ id, token: data.candidates.find((one) => one.id === id), own: own[id], drawn: drawn[id] }));
  const rest = 1 - shown.reduce((sum, bar) => sum + bar.drawn, 0);
  return { own, drawn, shown, kept, rest: Math.max(0, rest), scale: Math.max(...shown.map((bar) => Math.max(bar.own, bar.drawn))) };
}

function Bars({ bars, model, choose }) {
  if (!bars) return html`<div class="bars is-waiting" aria-busy="true"></div>`;
  return html`<div class="bars" role="group" aria-label="Likeliest next tokens">
      ${bars.shown.map(
        (bar) => html`<button type="button" class=${`bar ${bar.drawn === 0 ? "is-cut" : ""}`} disabled=${bar.drawn === 0} key=${bar.id}
          title=${`the model itself: ${percent(bar.own)}`} onClick=${() => choose(bar.id, bar.token)}>
          <span class="bar-name">${model.end_ids.includes(bar.id) ? "■ the end" : label(bar.token)}</span>
          <span class="bar-line" style=${{ "--own": bar.own / bars.scale, "--drawn": bar.drawn / bars.scale }}><i></i><b></b></span>
          <span class="bar-value">${bar.drawn === 0 ? "cut" : percent(bar.drawn)}</span>
        </button>`,
      )}
    </div>
    <p class="hint row">
      <span class="key"><i class="swatch is-drawn"></i>drawn with</span><span class="key"><i class="swatch is-own"></i>the model's own</span>
      <span>All other tokens together: ${percent(bars.rest)}</span>
    </p>`;
}

/** Tokens from the first choice on; where several were tried, a branch for each. */
function Branch({ tree, keys, at, path, ends, go }) {
  return html`<ul>
    ${keys.map((key) => {
      const chain = [key];
      while (tree[chain.at(-1)].children.length === 1) chain.push(tree[chain.at(-1)].children[0]);
      const next = tree[chain.at(-1)].children;
      return html`<li key=${key}>
        <span class="chain">
          ${chain.map(
            (one, i) => html`<button type="button" class=${`twig ${path.includes(one) ? "is-path" : ""}`} aria-current=${one === at ? "step" : null} key=${one}
              title=${`the model itself: ${percent(tree[one].own)}`} onClick=${() => go(one)}>${
              ends.includes(tree[one].token.id) ? "■" : i === 0 ? spelled(tree[one].token).trimStart() : spelled(tree[one].token)
            }</button>`,
          )}
        </span>
        ${next.length > 0 && html`<${Branch} tree=${tree} keys=${next} at=${at} path=${path} ends=${ends} go=${go} />`}
      </li>`;
    })}
  </ul>`;
}

/** The keys from the first choice to `at`. */
function pathTo(tree, at) {
  const path = [];
  for (let key = at; key !== ROOT; key = tree[key].parent) path.unshift(key);
  return path;
}
