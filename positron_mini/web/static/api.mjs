// Talking to the server: one JSON call, one stream of events. An error carries the server's sentence.

const KEY = "positron.key";

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** Remember the key that the server was started with (--api_key), for this tab. */
export function setKey(key) {
  sessionStorage.setItem(KEY, key);
}

function request(path, body, signal) {
  const headers = {};
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body === undefined) return fetch(path, { headers, signal, cache: "no-store" });
  headers["Content-Type"] = "application/json";
  return fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
}

async function checked(path, body, signal) {
  let response;
  try {
    response = await request(path, body, signal);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer. Is it still running?", 0);
  }
  if (response.ok) return response;
  const answer = await response.json().catch(() => null);
  signal?.throwIfAborted(); // a refusal of what nobody waits for any more is no error
  throw new ApiError(answer?.error?.message ?? `The server answered ${response.status}.`, response.status);
}

/** The JSON answer to a GET, or to a POST when there is a `body`. Throws ApiError, or AbortError when `signal` fires. */
export async function call(path, body, signal) {
  return (await checked(path, body, signal)).json();
}

/** The objects of a server-sent event stream, as they arrive, up to `[DONE]`. Throws as `call`. */
export async function* events(path, body, signal) {
  const response = await checked(path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (held + value).split(/\r?\n/);
      held = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw new ApiError(event.error.message, 500);
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** The numbers of a base64 text that holds little-endian fp32. */
export function floats(base64) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  return new Float32Array(bytes.buffer);
}
