/** Which answers are tried again, and when. */

import { ApiError, type WearonError } from "./errors.js";

/**
 * Limits of the tries of one call. The wait before the n-th retry is drawn from 0 to
 * `baseSeconds * 2**n`, at most `maxSeconds` (backoff with full jitter), after the `Retry-After` of
 * the response. No try begins later than `totalSeconds` after the first.
 */
export interface Retries {
  attempts: number;
  totalSeconds: number;
  baseSeconds: number;
  maxSeconds: number;
}

export const RETRIES: Retries = {
  attempts: 6,
  totalSeconds: 120,
  baseSeconds: 0.5,
  maxSeconds: 20,
};

const TIMER_SECONDS = 0.005;

/**
 * The header `Retry-After`, seconds or an HTTP date (RFC 9110, section 10.2.3), as seconds from now;
 * null if it is missing or neither.
 */
export function retryAfterSeconds(value: string | null, nowMs = Date.now()): number | null {
  const text = (value ?? "").trim();
  if (/^\d+$/.test(text)) return Number(text.slice(0, 9));
  const date = /^[A-Za-z]{3,9},? /.test(text) ? Date.parse(text) : NaN;
  return Number.isNaN(date) ? null : Math.max(0, (date - nowMs) / 1000);
}

/** Seconds since some moment; never goes back. */
export function clock(): number {
  return performance.now() / 1000;
}

/** Whether the time until `end` is over. A timer may fire a little early. */
export function isOver(end: number): boolean {
  return clock() >= end - TIMER_SECONDS;
}

/** Counts the tries of one call against its limits. */
export class Tries {
  #retried = 0;
  #until: number;

  constructor(
    readonly retries: Retries,
    readonly end = Infinity,
  ) {
    this.#until = clock() + retries.totalSeconds;
  }

  /** Begin again, after a success of a call that goes on. */
  reset(): void {
    this.#retried = 0;
    this.#until = clock() + this.retries.totalSeconds;
  }

  get leftSeconds(): number {
    return Math.min(this.#until, this.end) - clock();
  }

  /** Seconds to wait before the next try. Throws the failure if there is none. */
  delayAfter(failure: WearonError, leastSeconds = 0): number {
    let after = leastSeconds;
    if (failure instanceof ApiError) {
      if (!isRetried(failure)) throw failure;
      after = failure.retryAfterSeconds ?? 0;
    }
    const { attempts, baseSeconds, maxSeconds } = this.retries;
    const most = Math.min(maxSeconds, baseSeconds * 2 ** this.#retried);
    const delay = after + Math.random() * most;
    this.#retried += 1;
    if (this.#retried >= attempts || delay >= this.leftSeconds) throw failure;
    return delay;
  }
}

/**
 * Whether a later try can succeed: too many requests, an outage, or a repetition whose first request
 * is not settled yet.
 */
function isRetried({ status, code, retryAfterSeconds: after }: ApiError): boolean {
  const unsettled = status === 409 && code === "CONFLICT" && after !== null;
  return status === 429 || status === 503 || unsettled;
}
