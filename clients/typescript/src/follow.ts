import { isFinal, type Session } from "./models.js";
import type { ServerEvent } from "./sse.js";

export const GENERATIONS = "/api/v1/generations";
const EVENTS = "/api/v1/events";

export function pathOf(sessionId: string): string {
  return `${GENERATIONS}/${encodeURIComponent(sessionId)}`;
}

interface Place {
  url: string;
  revision?: number | undefined;
}

/**
 * Follows sessions until each is final. Streams repeat states after a reconnect, and an old stream
 * may still deliver: a state counts only if its revision is above the newest one.
 */
export class Follower {
  readonly pending: Set<string>;
  readonly states = new Map<string, Session>();
  readonly #revisions = new Map<string, number>();

  constructor(sessionIds: Iterable<string>) {
    this.pending = new Set(sessionIds);
  }

  get isDone(): boolean {
    return this.pending.size === 0;
  }

  get first(): string {
    return this.pending.values().next().value ?? "";
  }

  /**
   * The URL, and the revision to resume after: one session's stream has revisions to resume by, and
   * that of several sessions begins with their current states.
   */
  resumesAt(): Place {
    if (this.pending.size === 1) {
      return { url: `${pathOf(this.first)}/events`, revision: this.#revisions.get(this.first) };
    }
    return { url: `${EVENTS}?${new URLSearchParams({ ids: [...this.pending].join(",") })}` };
  }

  /**
   * The session of an event if it is news; undefined for old states, other events and other
   * sessions. Throws for a state that cannot be read.
   */
  newer(event: ServerEvent): Session | undefined {
    const state = stateOf(event);
    if (state === undefined) return undefined;
    const { id, revision, session } = state;
    if (!this.pending.has(id) || revision <= (this.#revisions.get(id) ?? -1)) return undefined;
    this.#revisions.set(id, revision);
    this.states.set(id, session);
    if (isFinal(session)) this.pending.delete(id);
    return session;
  }
}

/** Follows all sessions of the caller, without an end. Such a stream does not resume. */
export class Everything {
  readonly isDone = false;

  resumesAt(): Place {
    return { url: EVENTS };
  }

  /** Every state: a stream tells each one once. Throws as `Follower.newer` does. */
  newer(event: ServerEvent): Session | undefined {
    return stateOf(event)?.session;
  }
}

interface State {
  id: string;
  revision: number;
  session: Session;
}

/** What the event tells, if that is the state of a session. Throws if it cannot be read. */
function stateOf(event: ServerEvent): State | undefined {
  if (event.type !== "generation" || !/^\d{1,15}$/.test(event.id ?? "")) return undefined;
  const session = JSON.parse(event.data) as Session;
  if (typeof session.session_id !== "string") throw new TypeError("no state of a session");
  return { id: session.session_id, revision: Number(event.id), session };
}
