import { ApiError, ConnectionFailed, WearonError } from "./errors.js";
import { retryAfterSeconds, type Retries, Tries } from "./retries.js";

const MAX_RESPONSE_BYTES = 32 * 2 ** 20;
/** What the last try gets, however little time is left. */
const LEAST_SECONDS = 0.25;

/** A user's token, a store's API key, or what returns the current one. */
export type Token = string | (() => string | Promise<string>);

/** One request. `url` may be relative to the API's. */
export interface Request {
  method: string;
  url: string;
  headers?: Record<string, string>;
  body?: BodyInit;
  /** Without the caller's token: the link is the credential. */
  anonymous?: boolean;
  timeoutSeconds?: number;
}

/** A complete response. */
export interface Reply {
  status: number;
  headers: Headers;
  text: string;
}

/** An open response with status 200; `read` returns undefined once it ended, broke or was silent. */
export interface Stream {
  read(timeoutSeconds: number): Promise<Uint8Array | undefined>;
  close(): void;
}

export interface HttpOptions {
  baseUrl: string;
  token: Token;
  retries: Retries;
  fetch: typeof fetch;
}

/** Sends requests, and tries again what can succeed later. */
export class Http {
  constructor(readonly options: HttpOptions) {}

  /** The successful response, after as many tries as it takes. Throws the last failure. */
  async send(request: Request, { end = Infinity, signal }: Limits = {}): Promise<Reply> {
    const tries = new Tries(this.options.retries, end);
    for (;;) {
      const left = Math.max(LEAST_SECONDS, tries.leftSeconds);
      const seconds = Math.min(request.timeoutSeconds ?? 30, left);
      const reply = await this.#try(request, seconds, signal);
      if (!(reply instanceof WearonError)) return reply;
      await sleep(tries.delayAfter(reply), signal);
    }
  }

  async #try(
    request: Request,
    seconds: number,
    signal: AbortSignal | undefined,
  ): Promise<Reply | WearonError> {
    const prepared = await this.#prepared(request);
    const timer = new Timer(seconds, signal);
    try {
      const response = await prepared(timer.signal);
      const reply = await replyOf(response);
      if (reply instanceof WearonError || request.anonymous || isEnveloped(reply)) return reply;
      return new ConnectionFailed(`status ${reply.status} without an envelope`);
    } catch (error) {
      signal?.throwIfAborted();
      return lost(error);
    } finally {
      timer.clear();
    }
  }

  /** An open stream, the failure to open it, or "over" for 204: there is nothing more to come. */
  async open(
    request: Request,
    seconds: number,
    signal: AbortSignal | undefined,
  ): Promise<Stream | "over" | WearonError> {
    const prepared = await this.#prepared(request);
    const timer = new Timer(seconds, signal);
    try {
      const response = await prepared(timer.signal);
      if (response.status === 200 && response.body) return streamOf(response.body, timer);
      const reply = await replyOf(response);
      timer.clear();
      if (response.status === 204) return "over";
      return reply instanceof WearonError ? reply : new ConnectionFailed("the response is no stream");
    } catch (error) {
      timer.clear();
      signal?.throwIfAborted();
      return lost(error);
    }
  }

  /** Sends the request. Made apart, because what fails here is the caller's, and not tried again. */
  async #prepared(request: Request): Promise<(signal: AbortSignal) => Promise<Response>> {
    const { baseUrl, token, fetch } = this.options;
    const headers: Record<string, string> = { ...request.headers };
    if (!request.anonymous) {
      headers["Authorization"] = `Bearer ${typeof token === "string" ? token : await token()}`;
    }
    const url = new URL(request.url, baseUrl);
    const { method, body = null } = request;
    const init = { method, headers, body, redirect: "manual" } as const;
    // Called without `this`, which browsers require of fetch.
    return (signal) => fetch(url, { ...init, signal });
  }
}

export interface Limits {
  /** When to stop, by `clock`. */
  end?: number;
  signal?: AbortSignal | undefined;
}

/** Aborts after some seconds, or with the caller's signal. */
class Timer {
  readonly #controller = new AbortController();
  readonly #abort = () => this.#controller.abort();
  #timeout: ReturnType<typeof setTimeout> | undefined;

  constructor(
    seconds: number,
    readonly outer: AbortSignal | undefined,
  ) {
    outer?.addEventListener("abort", this.#abort, { once: true });
    if (outer?.aborted) this.#abort();
    this.start(seconds);
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  start(seconds: number): void {
    this.pause();
    this.#timeout = setTimeout(this.#abort, Math.max(0, seconds) * 1000);
  }

  /** No limit until the next start: the caller is at work. */
  pause(): void {
    clearTimeout(this.#timeout);
  }

  clear(): void {
    this.pause();
    this.outer?.removeEventListener("abort", this.#abort);
  }

  abort(): void {
    this.clear();
    this.#abort();
  }
}

function streamOf(body: ReadableStream<Uint8Array>, timer: Timer): Stream {
  const reader = body.getReader();
  return {
    async read(timeoutSeconds) {
      timer.start(timeoutSeconds);
      try {
        return (await reader.read()).value;
      } catch {
        timer.outer?.throwIfAborted();
        return undefined;
      } finally {
        timer.pause();
      }
    },
    close: () => timer.abort(),
  };
}

/** The whole response; an ApiError unless it is a success. */
async function replyOf(response: Response): Promise<Reply | ApiError> {
  const text = await boundedText(response);
  if (response.ok) return { status: response.status, headers: response.headers, text };
  const { code, message } = errorOf(text);
  return new ApiError({
    status: response.status,
    code,
    message,
    requestId: response.headers.get("X-Request-Id"),
    retryAfterSeconds: retryAfterSeconds(response.headers.get("Retry-After")),
  });
}

async function boundedText(response: Response): Promise<string> {
  const decoder = new TextDecoder();
  const reader = response.body?.getReader();
  let text = "";
  for (let size = 0; reader; ) {
    const { value, done } = await reader.read();
    if (done) break;
    size += value.length;
    if (size > MAX_RESPONSE_BYTES) throw new RangeError("the response is too large");
    text += decoder.decode(value, { stream: true });
  }
  return text + decoder.decode();
}

/** Code and message of the envelope. A proxy or a storage may answer without one. */
function errorOf(text: string): { code: string; message: string } {
  try {
    const { code, message } = (JSON.parse(text) as { error: { code: unknown; message: unknown } })
      .error;
    return { code: String(code), message: String(message) };
  } catch {
    return { code: "UNKNOWN", message: "a response without an envelope" };
  }
}

/** Whether this is an answer of the API: not that of a proxy, and not half of one. */
function isEnveloped(reply: Reply): boolean {
  try {
    return (JSON.parse(reply.text) as { data?: unknown } | null)?.data !== undefined;
  } catch {
    return false;
  }
}

/** The envelope's data. */
export function dataOf<T>(reply: Reply): T {
  return (JSON.parse(reply.text) as { data: T }).data;
}

function lost(error: unknown): ConnectionFailed {
  return new ConnectionFailed(error instanceof Error ? error.message : String(error), {
    cause: error,
  });
}

/** Timers of Node may end up to a millisecond early. */
export function sleep(seconds: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timeout);
      reject(signal?.reason);
    };
    const timeout = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, seconds * 1000 + 1);
    if (signal?.aborted) stop();
    else signal?.addEventListener("abort", stop, { once: true });
  });
}
