// Conversations with the model; they live in this browser only.

import { events } from "../api.mjs";
import {
  Button, CopyButton, Note, Panel, SAMPLING, SamplingControls, StopButton, html, once, useEffect, useLayoutEffect, useRef, useState, useStored, whole,
} from "../ui.mjs";

export const about = {
  id: "chat",
  name: "Chat",
  sentence: "Talk with your model: it reads the conversation so far and writes its answer one token at a time.",
  computedBy: "positron_mini.generate.stream",
};

const MAX_CONVERSATIONS = 40;
const fresh = () => ({ id: crypto.getRandomValues(new Uint32Array(2)).join("-"), title: "New conversation", system: "", messages: [] });

export function View({ lab }) {
  const [conversations, setConversations] = useStored("positron.conversations", [fresh()]);
  const [chosen, choose] = useStored("positron.conversation", null);
  const [settings, setSettings] = useStored("positron.chat", { ...SAMPLING, temperature: 0.3, top_p: 0.8 });
  const [answering, setAnswering] = useState(null); // the id of the conversation that is being answered
  const [error, setError] = useState(null);
  const abort = useRef(null);
  useEffect(() => () => abort.current?.abort(), [lab.loading]); // gone to another panel, or to another model

  const current = conversations.find((one) => one.id === chosen) ?? conversations[0];
  const change = (id, how) => setConversations((all) => all.map((one) => (one.id === id ? how(one) : one)));
  const begin = () => {
    const one = fresh();
    setConversations((all) => [one, ...all.filter((old) => old.messages.length > 0)].slice(0, MAX_CONVERSATIONS));
    choose(one.id);
    setError(null);
  };
  const remove = (id) =>
    setConversations((all) => {
      const left = all.filter((one) => one.id !== id);
      return left.length > 0 ? left : [fresh()];
    });

  /** Ask with `messages`, which end with a question, and let the answer grow at their end. */
  const ask = async (messages, attempt = 0) => {
    const { id, system } = current;
    const put = (answer) => change(id, (one) => ({ ...one, messages: [...messages, answer] }));
    const title = messages.find((message) => message.role === "user").content.trim().slice(0, 60);
    let answer = { role: "assistant", content: "", attempt };
    change(id, (one) => ({ ...one, title, messages: [...messages, answer] }));
    abort.current = new AbortController();
    setAnswering(id);
    setError(null);
    const spoken = messages.map(({ role, content }) => ({ role, content })).filter((message) => message.content !== "");
    const { seed, ...sampling } = settings;
    const body = {
      model: lab.model.id,
      messages: system.trim() ? [{ role: "system", content: system }, ...spoken] : spoken,
      ...sampling,
      seed: seed + attempt, // another answer to the same question needs another seed
      truncation: "auto",
      stream: true,
      stream_options: { include_usage: true },
    };
    const began = performance.now();
    try {
      for await (const event of events("/v1/chat/completions", body, abort.current.signal)) {
        const choice = event.choices[0];
        const content = answer.content + (choice?.delta?.content ?? "");
        answer = { ...answer, content, ...(choice?.finish_reason && { reason: choice.finish_reason }), ...(event.usage && { tokens: event.usage.completion_tokens }) };
        put(answer);
      }
      put({ ...answer, seconds: (performance.now() - began) / 1000 });
    } catch (problem) {
      if (problem.name === "AbortError") put({ ...answer, reason: "stopped" });
      else {
        setError(problem);
        if (answer.content === "") change(id, (one) => ({ ...one, messages }));
      }
    } finally {
      setAnswering(null);
      abort.current = null;
    }
  };

  const regenerate = (index) => ask(current.messages.slice(0, index), (current.messages[index].attempt ?? 0) + 1);
  const resend = (index, content) => ask([...current.messages.slice(0, index), { role: "user", content }]);
  const busy = answering !== null || lab.loading;

  return html`<${Panel} about=${about}>
    <div class="chat">
      <aside class="conversations" aria-label="Conversations">
        <${Button} onClick=${begin} disabled=${busy}>New conversation<//>
        <ul>
          ${conversations.map(
            (one) => html`<li key=${one.id} class=${one.id === current.id ? "is-open" : ""}>
              <button type="button" class="open" aria-current=${one.id === current.id ? "true" : null} disabled=${busy} onClick=${() => (choose(one.id), setError(null))}>${one.title}</button>
              <button type="button" class="remove" aria-label=${`Delete “${one.title}”`} disabled=${busy} onClick=${once(() => remove(one.id))}>×</button>
            </li>`,
          )}
        </ul>
      </aside>
      <div class="talk">
        <${Messages} key=${current.id} messages=${current.messages} model=${lab.model} busy=${busy} answering=${answering !== null} regenerate=${regenerate} resend=${resend} />
        <${Note} error=${error} />
        <${Composer} busy=${busy} answering=${answering !== null} model=${lab.model} send=${(content) => ask([...current.messages, { role: "user", content }])} stop=${() => abort.current?.abort()} />
        <details class="settings">
          <summary>Sampling <span class="hint">temperature ${settings.temperature.toFixed(2)}, top-p ${settings.top_p.toFixed(2)}, up to ${settings.max_tokens} tokens</span></summary>
          <${SamplingControls} settings=${settings} onChange=${setSettings} />
          ${lab.model.is_chat &&
          html`<label class="field"><span>System text, read before the conversation</span>
            <textarea rows="2" value=${current.system} onInput=${(event) => {
              const system = event.currentTarget.value;
              change(current.id, (one) => ({ ...one, system }));
            }}></textarea></label>`}
        </details>
      </div>
    </div>
  <//>`;
}

function Messages({ messages, model, busy, answering, regenerate, resend }) {
  const [editing, setEditing] = useState(null);
  const log = useRef(null);
  const follows = useRef(true);
  useLayoutEffect(() => {
    if (follows.current) log.current.scrollTop = log.current.scrollHeight;
  });
  const scrolled = () => {
    follows.current = log.current.scrollHeight - log.current.scrollTop - log.current.clientHeight < 40;
  };
  if (messages.length === 0) {
    return html`<div class="messages is-empty" ref=${log}>
      <p class="prose">${model.is_chat ? "Ask it something." : "Begin a story, and it will go on."}</p>
      <p class="hint">${model.is_chat
        ? "It knows nothing but what it was trained on."
        : "This is a base model: it continues a text and was not taught to answer. It reads only your last message."}</p>
    </div>`;
  }
  return html`<div class="messages" role="log" aria-label="Conversation" aria-busy=${answering} ref=${log} onScroll=${scrolled} tabindex="0">
    ${messages.map((message, i) => {
      const isLast = i === messages.length - 1;
      if (message.role === "user" && editing === i) {
        return html`<${Editor} key=${i} text=${message.content} busy=${busy} cancel=${() => setEditing(null)} save=${(text) => (setEditing(null), resend(i, text))} />`;
      }
      return html`<article key=${i} class=${`message is-${message.role}`} aria-label=${message.role === "user" ? "You" : "The model"}>
        <p class="prose" dir="auto">${message.content.replace(/^\n+/, "")}${answering && isLast ? html`<span class="caret" aria-hidden="true"></span>` : ""}</p>
        ${!(answering && isLast) &&
        html`<div class="actions">
          <${CopyButton} text=${message.content} />
          ${message.role === "user"
            ? html`<${Button} kind="quiet" disabled=${busy} onClick=${() => setEditing(i)}>Edit<//>`
            : html`<${Button} kind="quiet" disabled=${busy} onClick=${() => regenerate(i)}>Regenerate<//>`}
          ${message.role === "assistant" && html`<span class="hint">${facts(message)}</span>`}
        </div>`}
      </article>`;
    })}
  </div>`;
}

function facts({ tokens, seconds, reason }) {
  const parts = [];
  if (tokens) parts.push(`${whole(tokens)} tokens`);
  if (tokens && seconds) parts.push(`${whole(tokens / seconds)} per second`);
  if (reason === "length") parts.push("cut at the length limit");
  if (reason === "stopped") parts.push("stopped");
  return parts.join(" · ");
}

function Editor({ text, busy, cancel, save }) {
  const [value, setValue] = useState(text);
  const keys = (event) => {
    if (event.key === "Escape") cancel();
  };
  return html`<form class="message is-user is-edited" onSubmit=${(event) => (event.preventDefault(), value.trim() && save(value))}>
    <textarea rows="3" aria-label="Your message" value=${value} onInput=${(event) => setValue(event.currentTarget.value)} onKeyDown=${keys} autofocus></textarea>
    <div class="actions"><${Button} kind="main" type="submit" disabled=${busy}>Send again<//><${Button} onClick=${cancel}>Cancel<//></div>
  </form>`;
}

function Composer({ busy, answering, model, send, stop }) {
  const [text, setText] = useState("");
  const field = useRef(null);
  const submit = (event) => {
    event?.preventDefault();
    if (busy || !text.trim()) return;
    send(text);
    setText("");
    field.current.focus();
  };
  const keys = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) submit(event);
    if (event.key === "Escape" && answering) stop();
  };
  return html`<form class="composer" onSubmit=${submit}>
    <textarea ref=${field} rows="2" aria-label="Message" placeholder=${model.is_chat ? "Your message" : "Once upon a time"} value=${text}
      onInput=${(event) => setText(event.currentTarget.value)} onKeyDown=${keys}></textarea>
    ${answering
      ? html`<${StopButton} kind="main" stop=${stop} />`
      : html`<${Button} kind="main" type="submit" disabled=${busy || !text.trim()}>Send<//>`}
  </form>`;
}
