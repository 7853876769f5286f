// A run as its files show it, also while it trains.

import { call } from "../api.mjs";
import { Chart } from "../chart.mjs";
import { Card, Choice, Note, Panel, Select, Slider, Stat, duration, html, percent, useEffect, useMemo, useRef, useState, useStored, whole } from "../ui.mjs";

export const about = {
  id: "training",
  name: "Training",
  sentence: "Watch a run learn: its loss falls, its samples turn from noise into stories, its skills rise, all read from the files the run writes.",
  computedBy: "positron_mini.train.recorder.Recorder.record",
};

const POLL_MS = 2000;
const LOGS = ["metrics", "samples", "skills"];

export function View() {
  const [runs, setRuns] = useState(null);
  const [error, setError] = useState(null);
  const [chosen, choose] = useStored("positron.run", null);
  usePolling(async (signal) => {
    try {
      setRuns((await call("/lab/api/runs", undefined, signal)).runs);
      setError(null);
    } catch (problem) {
      if (problem.name !== "AbortError") setError(problem);
    }
  }, "runs");
  const run = runs?.find((one) => one.name === chosen) ?? runs?.find((one) => one.is_training) ?? runs?.[0] ?? null;
  return html`<${Panel} about=${about}>
    <${Note} error=${error} />
    ${runs?.length === 0 && html`<${Note}>There are no runs to watch. Start one: <code>positron train --dataset_path FILE</code>, and serve with <code>positron lab</code>.<//>`}
    ${run && html`<${Run} key=${run.name} run=${run} runs=${runs} choose=${choose} />`}
  <//>`;
}

/** Call `work(signal)` now and every two seconds while the page is seen. */
function usePolling(work, key) {
  const newest = useRef(work);
  newest.current = work;
  useEffect(() => {
    const abort = new AbortController();
    let timer = null;
    const tick = async () => {
      if (!document.hidden) await newest.current(abort.signal);
      if (!abort.signal.aborted) timer = setTimeout(tick, POLL_MS);
    };
    tick();
    return () => {
      abort.abort();
      clearTimeout(timer);
    };
  }, [key]);
}

/** The rows of a run's logs, the new lines fetched every two seconds. A log that was rewritten is read from its beginning. */
function useLogs(name, logs = LOGS) {
  const [rows, setRows] = useState({}); // of each path, so that one run's lines are never shown as another's
  const places = useRef({});
  const pathOf = (log) => `/lab/api/runs/${encodeURIComponent(name)}/logs/${log}`;
  usePolling(async (signal) => {
    try {
      for (const log of name ? logs : []) {
        for (let more = true; more; ) {
          const path = pathOf(log);
          const { offset = 0, version = "" } = places.current[path] ?? {};
          const part = await call(`${path}?offset=${offset}&version=${version}`, undefined, signal);
          more = part.more;
          places.current[path] = part;
          if (part.restarted || part.rows.length > 0) setRows((old) => ({ ...old, [path]: part.restarted ? part.rows : [...(old[path] ?? []), ...part.rows] }));
        }
      }
    } catch {
      // stopped, or the server is gone: the list of runs says so
    }
  }, name);
  return Object.fromEntries(logs.map((log) => [log, rows[pathOf(log)]]));
}

/** The rows of a curve that ships with the package; none while there is no `name`. */
function useReference(name) {
  const [rows, setRows] = useState(null);
  useEffect(() => {
    setRows(null);
    const abort = new AbortController();
    if (name) call(`/lab/api/references/${encodeURIComponent(name)}`, undefined, abort.signal).then((answer) => setRows(answer.rows), () => {});
    return () => abort.abort();
  }, [name]);
  return rows;
}

function Run({ run, runs, choose }) {
  const { metrics = [], samples = [], skills = [] } = useLogs(run.name);
  const [references, setReferences] = useState([]);
  const last = metrics.at(-1);
  const scored = metrics.filter((row) => row.val_bpb !== undefined).at(-1);
  const left = run.horizon && last && run.batch_tokens ? ((run.horizon - last.step) * run.batch_tokens) / last.tok_per_s : null;
  const state = run.damaged ? "damaged" : run.is_training ? "training now" : run.horizon && run.step >= run.horizon ? "finished" : "paused";
  return html`<div class="row run-head">
      <${Select} name="Run" value=${run.name} onChange=${choose}
        options=${runs.map((one) => ({ value: one.name, name: `${one.name}${one.damaged ? " · damaged" : one.is_training ? " · training now" : ""}` }))} />
      <span class=${`state ${run.is_training ? "is-live" : ""}`} role="status">${state}</span>
    </div>
    <div class="stats">
      <${Stat} name="Step" value=${last ? whole(last.step) : "–"} unit=${run.horizon ? `of ${whole(run.horizon)}` : ""} />
      <${Stat} name="Loss" value=${last ? last.loss.toFixed(3) : "–"} unit="nats per token" />
      <${Stat} name="Validation" value=${scored ? scored.val_bpb.toFixed(3) : "–"} unit="bits per byte" />
      <${Stat} name="Throughput" value=${last ? whole(last.tok_per_s) : "–"} unit="tokens per second" />
      <${Stat} name="Time" value=${last ? duration(last.elapsed_s) : "–"} unit=${run.is_training && left > 0 ? `about ${duration(left)} left` : ""} />
    </div>
    ${run.horizon && last && html`<progress max=${run.horizon} value=${last.step} aria-label="Progress"></progress>`}
    ${run.damaged && html`<${Note}>${run.damaged}. <code>positron verify</code> looks at every file of it.<//>`}
    <${Curves} run=${run} runs=${runs} metrics=${metrics} references=${references} />
    <${Checks} run=${run} step=${last?.step} onReferences=${setReferences} />
    <${Samples} samples=${samples} />
    <${Skills} skills=${skills} />`;
}

// --- curves -----------------------------------------------------------------------------------------------------------------------------

const SHIPPED = "shipped/"; // no run's name has a slash

function Curves({ run, runs, metrics, references }) {
  const [log, setLog] = useState(false);
  const [other, setOther] = useState("");
  const shipped = other.startsWith(SHIPPED) ? other.slice(SHIPPED.length) : "";
  const logged = useLogs(shipped ? "" : other, ["metrics"]).metrics;
  const reference = useReference(shipped);
  const rival = shipped ? reference : logged;
  const columns = useMemo(() => {
    const x = metrics.map((row) => row.step);
    const of = (name) => metrics.map((row) => row[name] ?? null);
    return { x, loss: of("loss"), val: of("val_loss"), speed: of("tok_per_s"), norm: of("grad_norm"), lr: of("lr") };
  }, [metrics]);
  const both = useMemo(() => (other && rival ? merged(metrics, rival, run.batch_tokens) : null), [metrics, rival, other]);
  const loss = [
    { name: "training", values: both ? both.loss : columns.loss, hue: "blue" },
    { name: "validation", values: both ? both.val : columns.val, hue: "orange", points: true, width: 2 },
    ...(both ? [{ name: shipped || other, values: both.rival, hue: "grey", dash: [6, 4] }] : []),
  ];
  if (metrics.length === 0) return html`<${Card} title="Loss"><p class="hint">The first step has not been reported yet.</p><//>`;
  const [first, last] = [metrics[0], metrics.at(-1)];
  const others = [
    ...runs.filter((one) => one.name !== run.name).map((one) => ({ value: one.name, name: one.name })),
    ...references.map((name) => ({ value: SHIPPED + name, name: `reference ${name}` })),
  ];
  return html`<${Card} title="Loss" aside="nats per token">
      <${Chart} x=${both ? both.x : columns.x} series=${loss} log=${log} height=${260}
        summary=${`Loss from ${first.loss.toFixed(2)} at step ${first.step} to ${last.loss.toFixed(2)} at step ${last.step}`} />
      <div class="row">
        <${Choice} name="Steps" value=${log} options=${[{ value: false, name: "Linear" }, { value: true, name: "Logarithmic" }]} onChange=${setLog} />
        ${others.length > 0 && html`<${Select} name="Compare with" value=${other} options=${[{ value: "", name: "nothing" }, ...others]} onChange=${setOther} />`}
      </div>
    <//>
    <div class="columns">
      <${Card} title="Throughput" aside="tokens per second">
        <${Chart} x=${columns.x} series=${[{ name: "throughput", values: columns.speed, hue: "green" }]} height=${150} log=${log} show=${whole}
          summary=${`Throughput, last ${whole(last.tok_per_s)} tokens per second`} />
      <//>
      <${Card} title="Gradient norm" aside="before clipping">
        <${Chart} x=${columns.x} series=${[{ name: "gradient norm", values: columns.norm, hue: "orange" }]} height=${150} log=${log}
          summary=${`Gradient norm, last ${last.grad_norm.toPrecision(3)}`} />
      <//>
    </div>`;
}

/** Two runs over the union of their steps; the other one's stand where this one had read as many tokens. */
function merged(rows, rival, batchTokens) {
  const at = (row) => (batchTokens ? Math.max(1, Math.round(row.tokens / batchTokens)) : row.step);
  const of = (list, name, place) => new Map(list.filter((row) => row[name] !== undefined).map((row) => [place(row), row[name]]));
  const own = (row) => row.step;
  const [loss, val, theirs] = [of(rows, "loss", own), of(rows, "val_loss", own), of(rival, "loss", at)];
  const x = [...new Set([...loss.keys(), ...theirs.keys()])].sort((a, b) => a - b);
  const over = (map) => x.map((step) => map.get(step) ?? null);
  return { x, loss: over(loss), val: over(val), rival: over(theirs) };
}

// --- is my curve normal? ----------------------------------------------------------------------------------------------------------------

function Checks({ run, step, onReferences }) {
  const [answer, setAnswer] = useState({ checks: [], references: [], reference: null });
  const [wanted, setWanted] = useState(null); // null: the one that fits the run
  useEffect(() => {
    const abort = new AbortController();
    const query = wanted === null ? "" : `?reference=${encodeURIComponent(wanted)}`;
    call(`/lab/api/runs/${encodeURIComponent(run.name)}/checks${query}`, undefined, abort.signal).then(
      (found) => (setAnswer(found), onReferences(found.references)),
      () => {},
    );
    return () => abort.abort();
  }, [run.name, wanted, Math.floor((step ?? 0) / 5)]);
  if (answer.checks.length === 0) return null;
  return html`<${Card} title="Is my curve normal?" aside=${html`<code>positron_mini.store.curve.curve_checks</code>`}>
    ${answer.references.length > 0 &&
    html`<${Select} name="Judge against" value=${wanted ?? answer.reference ?? ""} onChange=${setWanted}
      options=${[{ value: "", name: "general rules only" }, ...answer.references.map((name) => ({ value: name, name: `reference ${name}` }))]} />`}
    <ul class="checks">
      ${answer.checks.map(
        (check) => html`<li class=${check.ok === null ? "is-open" : check.ok ? "is-ok" : "is-odd"}>
          <b>${check.ok === null ? "not yet known" : check.ok ? "normal" : "unusual"}</b> <span>${check.detail}</span></li>`,
      )}
    </ul>
  <//>`;
}

// --- samples ----------------------------------------------------------------------------------------------------------------------------

function Samples({ samples }) {
  const prompts = [...new Set(samples.map((row) => row.prompt))];
  const [prompt, setPrompt] = useState(null);
  const [place, setPlace] = useState(null); // null: the newest
  const shown = prompts.includes(prompt) ? prompt : prompts[0];
  const rows = samples.filter((row) => row.prompt === shown);
  if (rows.length === 0) return html`<${Card} title="Samples"><p class="hint">None yet: a run writes some at every milestone.</p><//>`;
  const at = Math.min(place ?? rows.length - 1, rows.length - 1);
  const row = rows[at];
  return html`<${Card} title="What it writes" aside=${`${rows.length} milestones`}>
    <div class="row">
      ${prompts.length > 1 && html`<${Select} name="Beginning" value=${shown} options=${prompts.map((one) => ({ value: one, name: one }))} onChange=${setPrompt} />`}
      <${Slider} name="Step" value=${at} min="0" max=${rows.length - 1} step="1" show=${(i) => whole(rows[i].step)}
        onChange=${(i) => setPlace(i === rows.length - 1 ? null : i)} />
    </div>
    <p class="prose sample" aria-live="polite"><span class="given">${row.prompt}</span>${row.text}</p>
    <p class="hint">temperature ${row.temperature}, seed ${row.seed}</p>
  <//>`;
}

// --- skills -----------------------------------------------------------------------------------------------------------------------------

function Skills({ skills }) {
  const names = [...new Set(skills.map((row) => row.skill))];
  if (names.length === 0) return null;
  return html`<${Card} title="What it can do" aside="minimal pairs: chance is 50 %">
    <table class="skills">
      <thead><tr><th scope="col">Skill</th><th scope="col">From the first step to the newest</th><th scope="col">Now</th></tr></thead>
      <tbody>
        ${names.map((name) => {
          const rows = skills.filter((row) => row.skill === name);
          const now = rows.at(-1);
          return html`<tr key=${name}><th scope="row">${name.replaceAll("_", " ")}</th><td><${Spark} rows=${rows} /></td>
            <td><b>${percent(now.accuracy)}</b> <small>${(100 * now.low).toFixed(0)} to ${(100 * now.high).toFixed(0)} % · ${now.pairs} pairs</small></td></tr>`;
        })}
      </tbody>
    </table>
  <//>`;
}

/** Accuracy over the steps with its interval, 30 % at the bottom and 100 % at the top, with the line of chance. */
function Spark({ rows }) {
  const x = (i) => (rows.length === 1 ? 60 : (120 * i) / (rows.length - 1)).toFixed(1);
  const y = (share) => (46 - 44 * (Math.max(share, 0.3) - 0.3) / 0.7).toFixed(1);
  const line = (name) => rows.map((row, i) => `${x(i)},${y(row[name])}`);
  return html`<svg class="spark" viewBox="0 0 120 48" preserveAspectRatio="none" aria-hidden="true">
    <line x1="0" x2="120" y1=${y(0.5)} y2=${y(0.5)} />
    <polygon points=${[...line("high"), ...line("low").reverse()].join(" ")} />
    <polyline points=${line("accuracy").join(" ")} />
  </svg>`;
}
