// The page: which panel is open, which model is looked at, and the texts that panels share.

import { call, setKey } from "./api.mjs";
import * as attention from "./panels/attention.mjs";
import * as chat from "./panels/chat.mjs";
import * as compare from "./panels/compare.mjs";
import * as logitLens from "./panels/logit_lens.mjs";
import * as mask from "./panels/mask.mjs";
import * as nextToken from "./panels/next_token.mjs";
import * as surprise from "./panels/surprise.mjs";
import * as tokens from "./panels/tokens.mjs";
import * as training from "./panels/training.mjs";
import { Button, Note, Select, html, show, useEffect, useRef, useState, useStored, whole } from "./ui.mjs";

const GROUPS = [
  ["Talk", [chat, compare]],
  ["Look inside", [nextToken, tokens, surprise, attention, logitLens]],
  ["Train", [training, mask]],
];
const PANELS = GROUPS.flatMap(([, panels]) => panels);
const opened = () => PANELS.find((panel) => panel.about.id === location.hash.slice(1)) ?? chat;

/** `positron lab --api_key K` opens the page with the key after the #, which no server sees; it is taken out of the address at once. */
function takeKey() {
  const given = location.hash.match(/^#api_key=(.+)$/);
  if (!given) return;
  setKey(decodeURIComponent(given[1]));
  history.replaceState(null, "", location.pathname);
}

function App() {
  const [panel, setPanel] = useState(opened);
  const [models, setModels] = useState(null);
  const [error, setError] = useState(null);
  const [chosen, choose] = useStored("positron.model", null);
  const [model, setModel] = useState(null);
  const [text, setText] = useStored("positron.text", "Once upon a time, there was a little girl named Lily. She had a red ball.");

  const load = () =>
    call("/lab/api/models")
      .then((answer) => (setModels(answer.models), setError(null)))
      .catch(setError);
  useEffect(() => {
    load();
    const turned = () => setPanel(() => opened());
    addEventListener("hashchange", turned);
    return () => removeEventListener("hashchange", turned);
  }, []);
  useEffect(() => {
    document.title = `${panel.about.name} · Positron Mini lab`;
    // not scrollIntoView, which would also move the place from which the Tab key goes on
    const link = document.querySelector("nav [aria-current]").getBoundingClientRect();
    const list = document.querySelector("nav");
    list.scrollLeft += link.left + link.width / 2 - list.clientWidth / 2;
  }, [panel]);

  const checkpoint = models?.find((one) => one.id === chosen) ?? models?.[0] ?? null;
  useEffect(() => {
    if (!checkpoint) return undefined;
    let current = true;
    call("/lab/api/model", { model: checkpoint.id })
      .then((facts) => current && (setModel({ ...checkpoint, ...facts }), setError(null)))
      .catch((problem) => current && (setModel(null), setError(problem)));
    return () => {
      current = false;
    };
  }, [checkpoint?.id]);

  const needsModel = panel !== training;
  const View = panel.View;
  // while another model is read the panel stays, so that nothing typed meanwhile is lost; its buttons wait
  const loading = checkpoint !== null && model?.id !== checkpoint.id;
  const lab = { models: models ?? [], model, text, setText, loading };
  return html`<header class="top">
      <a class="brand" href="#chat"><img src="/static/icon.svg" alt="" width="22" height="22" />Positron Mini</a>
      ${checkpoint && html`<${ModelPicker} models=${models} checkpoint=${checkpoint} model=${loading ? null : model} choose=${choose} />`}
    </header>
    <nav class="panels" aria-label="Panels">
      ${GROUPS.map(
        ([name, panels]) => html`<div class="group">
          <h2>${name}</h2>
          ${panels.map(
            (one) => html`<a href=${`#${one.about.id}`} aria-current=${one === panel ? "page" : null}>${one.about.name}</a>`,
          )}
        </div>`,
      )}
    </nav>
    <main id="main" tabindex="-1" aria-busy=${needsModel && loading && !error}>
      ${error?.status === 401 ? html`<${KeyForm} retry=${load} />` : html`<${Note} error=${error} />`}
      ${models?.length === 0 && needsModel && html`<${Note}>There is no trained model here yet. Train one: <code>./bootstrap_tiny_llm.sh</code><//>`}
      ${(model || !needsModel) && html`<${View} key=${panel.about.id} lab=${lab} />`}
      ${!model && needsModel && !error && models?.length !== 0 && html`<p class="loading" role="status">Loading the model …</p>`}
    </main>`;
}

/** Two choices, because a run has many steps: the run, then the step. */
function ModelPicker({ models, checkpoint, model, choose }) {
  const runs = [...new Set(models.map((one) => one.run))];
  const steps = models.filter((one) => one.run === checkpoint.run);
  const pickRun = (run) => choose(models.find((one) => one.run === run).id);
  return html`<div class="picker">
    <${Select} name="Model" hideName value=${checkpoint.run} options=${runs.map((run) => ({ value: run, name: run }))} onChange=${pickRun} />
    ${steps.length > 1 &&
    html`<${Select} name="Step" hideName value=${checkpoint.id} onChange=${choose}
      options=${steps.map((one) => ({ value: one.id, name: one.name }))} />`}
    ${model ? html`<span class="shape">${whole(model.parameters / 1e5) / 10} M parameters · ${checkpoint.about}${model.weights === "int8" ? " · writes with 8-bit weights" : ""}</span>` : html`<span class="shape" role="status">loading …</span>`}
    ${checkpoint.remark && html`<span class="shape">${checkpoint.remark}</span>`}
  </div>`;
}

function KeyForm({ retry }) {
  const field = useRef(null);
  const enter = (event) => {
    event.preventDefault();
    setKey(field.current.value.trim());
    retry();
  };
  return html`<form class="card" onSubmit=${enter}>
    <label class="field"><span>This server needs the key it was started with (--api_key)</span><input type="password" ref=${field} autocomplete="off" /></label>
    <${Button} kind="main" type="submit">Open<//>
  </form>`;
}

takeKey();
show(App, document.getElementById("app"));
