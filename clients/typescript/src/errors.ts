import type { Session } from "./models.js";

/**
 * Anything that this client throws on its own. `sessionId` is the session that a call had already
 * created or awaited, `idempotencyKey` the key of a submission: submitting again with that key
 * charges it once.
 */
export class WearonError extends Error {
  override name = "WearonError";
  sessionId?: string;
  idempotencyKey?: string;
}

export interface Refusal {
  status: number;
  code: string;
  message: string;
  requestId: string | null;
  retryAfterSeconds: number | null;
}

/**
 * The API refused a request. `code` is for programs, and may be one that this client does not know;
 * `requestId` finds the request in the service's logs.
 */
export class ApiError extends WearonError {
  override name = "ApiError";
  readonly status: number;
  readonly code: string;
  readonly requestId: string | null;
  readonly retryAfterSeconds: number | null;

  constructor(refusal: Refusal) {
    super(refusal.message);
    this.status = refusal.status;
    this.code = refusal.code;
    this.requestId = refusal.requestId;
    this.retryAfterSeconds = refusal.retryAfterSeconds;
  }
}

/** No usable response came, also after all retries. A submission may have arrived. */
export class ConnectionFailed extends WearonError {
  override name = "ConnectionFailed";
}

/** A session was not final in time. `last` is its latest known state, if any. It goes on. */
export class WaitTimeout extends WearonError {
  override name = "WaitTimeout";
  readonly last: Session | undefined;

  constructor(sessionId: string, last: Session | undefined) {
    super(`session ${sessionId} was not final in time`);
    this.sessionId = sessionId;
    this.last = last;
  }
}

/** A webhook's signature, time or form is not valid: answer 400, and do not act on it. */
export class InvalidWebhook extends WearonError {
  override name = "InvalidWebhook";
}
