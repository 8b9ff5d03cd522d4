import { ApiError, ConnectionFailed, WaitTimeout, WearonError } from "./errors.js";
import { Everything, Follower, GENERATIONS, pathOf } from "./follow.js";
import {
  dataOf,
  Http,
  type Limits,
  type Reply,
  type Request,
  sleep,
  type Stream,
  type Token,
} from "./http.js";
import {
  type BatchItem,
  type BatchResult,
  isFinal,
  type NewGeneration,
  type Session,
  type SessionPage,
  type Submitted,
} from "./models.js";
import { clock, isOver, RETRIES, type Retries, Tries } from "./retries.js";
import { EventParser } from "./sse.js";

const MAX_FOLLOWED = 100;
const MAX_WAIT_SECONDS = 60;
/** What a response may take beyond the time that it was asked to wait. */
const ANSWER_SECONDS = 15;
/** What is left of the caller's time for the response to arrive. */
const TRAVEL_SECONDS = 0.5;
/** The least time between two reads of a service that does not wait. */
const POLL_SECONDS = 1;
const UPLOAD_SECONDS = 120;
const WAIT_SECONDS = 600;
const FOLLOW_SECONDS = 3600;

export interface ClientOptions {
  /** The API's origin, such as `https://api.example`. */
  baseUrl: string;
  token: Token;
  retries?: Partial<Retries>;
  /** Silence after which a stream is given up. The service sends a ping every 45 seconds. */
  idleSeconds?: number;
  fetch?: typeof fetch;
}

export interface CallOptions {
  signal?: AbortSignal;
}

export interface SubmitOptions extends CallOptions {
  /** Generated unless given. All tries carry it. */
  idempotencyKey?: string;
}

export interface WaitOptions extends CallOptions {
  timeoutSeconds?: number;
}

export interface ListOptions extends CallOptions {
  status?: string;
  /** 1 to 50. */
  limit?: number;
  cursor?: string;
}

export type OnUpdate = (session: Session) => unknown;
export type OnOpen = () => unknown;

export interface SubscribeAllOptions extends WaitOptions {
  /** Called each time that a stream is open. */
  onOpen?: OnOpen;
}

/**
 * A caller of the API. Every method throws `ApiError` if the API refuses a request, and
 * `ConnectionFailed` if no response came, both after the retries that make sense. An aborted
 * `signal` throws its reason.
 */
export class Wearon {
  readonly #http: Http;
  readonly #retries: Retries;
  readonly #idleSeconds: number;

  constructor({ baseUrl, token, retries = {}, idleSeconds = 60, ...options }: ClientOptions) {
    this.#retries = { ...RETRIES, ...retries };
    this.#idleSeconds = idleSeconds;
    this.#http = new Http({
      baseUrl,
      token,
      retries: this.#retries,
      fetch: options.fetch ?? globalThis.fetch,
    });
  }

  /** Create a generation. All tries carry one idempotency key, so it is charged once. */
  async submit(request: NewGeneration, options: SubmitOptions = {}): Promise<Submitted> {
    return dataOf(await this.#submit(request, {}, options, {}));
  }

  /**
   * Create a generation and return its session once that is `completed` or `failed`. Throws
   * WaitTimeout.
   */
  async submitAndWait(
    request: NewGeneration,
    options: SubmitOptions & WaitOptions = {},
  ): Promise<Session> {
    const end = clock() + (options.timeoutSeconds ?? WAIT_SECONDS);
    const reply = await this.#submit(request, prefer(end), options, { end });
    const session = dataOf<Session>(reply);
    if (reply.status === 200 && isFinal(session)) return session;
    return this.#wait(session.session_id, { end, signal: options.signal });
  }

  /** The session once it is final. Throws WaitTimeout. */
  async wait(sessionId: string, options: WaitOptions = {}): Promise<Session> {
    const end = clock() + (options.timeoutSeconds ?? WAIT_SECONDS);
    return this.#wait(sessionId, { end, signal: options.signal });
  }

  /**
   * Call `onUpdate` with the session's current state and each newer one, the final one included, and
   * return that. States may be skipped, and never go backwards. Lost connections are made again. A
   * promise of `onUpdate` is awaited. Throws WaitTimeout.
   */
  async subscribe(
    sessionId: string,
    onUpdate: OnUpdate,
    options: WaitOptions = {},
  ): Promise<Session> {
    const states = await this.subscribeMany([sessionId], onUpdate, options);
    return states.get(sessionId) as Session;
  }

  /** The same for up to 100 sessions over one connection; returns their final states by id. */
  async subscribeMany(
    sessionIds: Iterable<string>,
    onUpdate: OnUpdate,
    { timeoutSeconds = FOLLOW_SECONDS, signal }: WaitOptions = {},
  ): Promise<Map<string, Session>> {
    const follower = new Follower(sessionIds);
    if (follower.pending.size > MAX_FOLLOWED) {
      throw new RangeError(`at most ${MAX_FOLLOWED} sessions can be followed at once`);
    }
    const end = clock() + timeoutSeconds;
    if (!(await this.#follow(follower, { onUpdate, end, signal }))) {
      throw new WaitTimeout(follower.first, follower.states.get(follower.first));
    }
    return follower.states;
  }

  /**
   * Call `onUpdate` with each new state of all the caller's sessions from now on, until the time is
   * over. A lost connection is made again, but does not resume: what changed in between is lost. So
   * `onOpen` is called as soon as a stream is open, each time: read the sessions there that you
   * wait for. A state that arrives afterwards may be older than what you read, except that a final
   * one stays. Promises of both are awaited.
   */
  async subscribeAll(
    onUpdate: OnUpdate,
    { timeoutSeconds = FOLLOW_SECONDS, signal, onOpen }: SubscribeAllOptions = {},
  ): Promise<void> {
    const end = clock() + timeoutSeconds;
    await this.#follow(new Everything(), { onUpdate, onOpen, end, signal });
  }

  /**
   * Cancel a generation. A session that a worker has is still `processing` in the answer: it fails
   * with `CANCELLED` soon, unless its picture is already stored.
   */
  async cancel(sessionId: string, options: CallOptions = {}): Promise<Session> {
    const request = { method: "POST", url: `${pathOf(sessionId)}/cancel` };
    try {
      return dataOf(await this.#http.send(request, options));
    } catch (error) {
      // A repetition finds the session cancelled and gets a 409: that is a success, too.
      if (!(error instanceof ApiError && error.status === 409)) throw error;
      const session = await this.get(sessionId, options);
      if (session.error_code !== "CANCELLED") throw error;
      return session;
    }
  }

  /** The session's current state. */
  async get(sessionId: string, options: CallOptions = {}): Promise<Session> {
    return dataOf(await this.#http.send({ method: "GET", url: pathOf(sessionId) }, options));
  }

  /** One page of sessions, newest first. */
  async list({ status, limit = 20, cursor, signal }: ListOptions = {}): Promise<SessionPage> {
    const query = new URLSearchParams({ limit: String(limit) });
    if (status !== undefined) query.set("status", status);
    if (cursor !== undefined) query.set("cursor", cursor);
    const request = { method: "GET", url: `${GENERATIONS}?${query}` };
    return dataOf(await this.#http.send(request, { signal }));
  }

  /** Store a JPEG, PNG or WebP picture and return its link for requests. */
  async upload(picture: Blob | Uint8Array, options: CallOptions = {}): Promise<string> {
    const blob = picture instanceof Blob ? picture : new Blob([picture as BlobPart]);
    const contentType = blob.type || (await mediaTypeOf(blob));
    const offer = dataOf<UploadOffer>(
      await this.#http.send(post("/api/v1/uploads", { content_type: contentType }), options),
    );
    const put: Request = {
      method: offer.method,
      url: offer.upload_url,
      headers: offer.headers,
      body: blob,
      anonymous: true,
      timeoutSeconds: UPLOAD_SECONDS,
    };
    await this.#http.send(put, options);
    return offer.image_url;
  }

  /**
   * Create 1 to 100 generations; returns the answer to each, in order. A rejected item does not
   * affect the others. With the same key, the batch may be repeated for those that got a 429 or 503:
   * the others are charged once.
   */
  async submitBatch(
    items: readonly BatchItem[],
    { idempotencyKey = newKey(), ...limits }: SubmitOptions = {},
  ): Promise<BatchResult[]> {
    const request = post(`${GENERATIONS}/batch`, { items });
    const reply = await this.#keyed(request, idempotencyKey, limits);
    return dataOf<{ items: BatchResult[] }>(reply).items;
  }

  async #submit(
    request: NewGeneration,
    headers: Record<string, string>,
    { idempotencyKey = newKey(), signal }: SubmitOptions,
    limits: Limits,
  ): Promise<Reply> {
    const asked = post(GENERATIONS, request, headers);
    if (headers["Prefer"]) asked.timeoutSeconds = MAX_WAIT_SECONDS + ANSWER_SECONDS;
    return this.#keyed(asked, idempotencyKey, { ...limits, signal });
  }

  async #keyed(request: Request, key: string, limits: Limits): Promise<Reply> {
    const headers = { ...request.headers, "Idempotency-Key": key };
    try {
      return await this.#http.send({ ...request, headers }, limits);
    } catch (error) {
      if (error instanceof WearonError) error.idempotencyKey = key;
      throw error;
    }
  }

  async #wait(sessionId: string, limits: Limits & { end: number }): Promise<Session> {
    let last: Session | undefined;
    for (let began = clock(); !isOver(limits.end); began = clock()) {
      last = await this.#waitOnce(sessionId, limits);
      if (isFinal(last)) return last;
      const rest = Math.min(began + POLL_SECONDS, limits.end) - clock();
      await sleep(Math.max(0, rest), limits.signal);
    }
    throw new WaitTimeout(sessionId, last);
  }

  async #waitOnce(sessionId: string, limits: Limits & { end: number }): Promise<Session> {
    const request = {
      method: "GET",
      url: pathOf(sessionId),
      headers: prefer(limits.end),
      timeoutSeconds: MAX_WAIT_SECONDS + ANSWER_SECONDS,
    };
    try {
      return dataOf(await this.#http.send(request, limits));
    } catch (error) {
      if (error instanceof WearonError) error.sessionId = sessionId;
      throw error;
    }
  }

  /**
   * Deliver the news of as many streams as it takes. Returns whether there will be no more: else
   * the time is over.
   */
  async #follow(follower: Follower | Everything, following: Following): Promise<boolean> {
    const { end, signal } = following;
    const tries = new Tries(this.#retries);
    while (!follower.isDone) {
      if (isOver(end)) return false;
      const seconds = Math.min(this.#idleSeconds, end - clock());
      const stream = await this.#http.open(events(follower), seconds, signal);
      // The states that it has are final, with a new status.
      if (stream === "over") return true;
      let least = 0;
      let failure = new ConnectionFailed("the stream ended") as WearonError;
      if (stream instanceof WearonError) failure = stream;
      else {
        const parser = new EventParser();
        if (await this.#read(stream, parser, follower, following)) tries.reset();
        if (isOver(end)) continue;
        least = parser.retrySeconds ?? this.#retries.baseSeconds;
      }
      if (follower.isDone) break;
      const delay = tries.delayAfter(failure, least);
      await sleep(Math.max(0, Math.min(delay, end - clock())), signal);
    }
    return true;
  }

  /** Deliver the news of one stream, until it ends. Returns whether it sent anything. */
  async #read(
    stream: Stream,
    parser: EventParser,
    follower: Follower | Everything,
    { onUpdate, onOpen, end }: Following,
  ): Promise<boolean> {
    let began = false;
    try {
      await onOpen?.();
      while (!follower.isDone && !isOver(end)) {
        const bytes = await stream.read(Math.min(this.#idleSeconds, end - clock()));
        if (bytes === undefined) break;
        began = true;
        for (const session of news(parser, follower, bytes)) {
          if (session === "unreadable") return false;
          await onUpdate(session);
        }
      }
    } finally {
      stream.close();
    }
    return began;
  }
}

interface Following {
  onUpdate: OnUpdate;
  onOpen?: OnOpen | undefined;
  end: number;
  signal?: AbortSignal | undefined;
}

interface UploadOffer {
  upload_url: string;
  method: string;
  headers: Record<string, string>;
  image_url: string;
}

function* news(
  parser: EventParser,
  follower: Follower | Everything,
  bytes: Uint8Array,
): Generator<Session | "unreadable"> {
  const events = parser.feed(bytes);
  for (;;) {
    let session: Session | undefined;
    try {
      const event = events.next();
      if (event.done) return;
      session = follower.newer(event.value);
    } catch {
      yield "unreadable";
      return;
    }
    if (session) yield session;
  }
}

function events(follower: Follower | Everything): Request {
  const { url, revision } = follower.resumesAt();
  const headers: Record<string, string> = { Accept: "text/event-stream" };
  if (revision !== undefined) headers["Last-Event-ID"] = String(revision);
  return { method: "GET", url, headers };
}

function prefer(end: number): Record<string, string> {
  const seconds = Math.floor(Math.min(end - clock() - TRAVEL_SECONDS, MAX_WAIT_SECONDS));
  return seconds >= 1 ? { Prefer: `wait=${seconds}` } : {};
}

function post(url: string, body: unknown, headers: Record<string, string> = {}): Request {
  return {
    method: "POST",
    url,
    headers: { "Content-Type": "application/json", ...headers },
    body: JSON.stringify(body),
  };
}

/** `crypto.randomUUID` is missing on pages served by plain HTTP. */
function newKey(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** By the first bytes. */
async function mediaTypeOf(picture: Blob): Promise<string> {
  const head = new Uint8Array(await picture.slice(0, 12).arrayBuffer());
  const text = String.fromCharCode(...head);
  if (text.startsWith("\xff\xd8\xff")) return "image/jpeg";
  if (text.startsWith("\x89PNG\r\n\x1a\n")) return "image/png";
  if (text.startsWith("RIFF") && text.endsWith("WEBP")) return "image/webp";
  throw new TypeError("the picture is no JPEG, PNG or WebP");
}
