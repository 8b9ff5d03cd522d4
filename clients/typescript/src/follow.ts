import { isFinal, type Session } from "./models.js";
import type { ServerEvent } from "./sse.js";

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

  /** The one session that is left, if only one is. */
  get single(): string | undefined {
    return this.pending.size === 1 ? this.first : undefined;
  }

  get first(): string {
    return this.pending.values().next().value ?? "";
  }

  /** The newest revision that is known. */
  revision(sessionId: string): number | undefined {
    return this.#revisions.get(sessionId);
  }

  /**
   * The session of an event if it is news; undefined for old states, other events and other
   * sessions. Throws for a state that cannot be read.
   */
  newer(event: ServerEvent): Session | undefined {
    if (event.type !== "generation" || !/^\d{1,15}$/.test(event.id ?? "")) return undefined;
    const session = JSON.parse(event.data) as Session;
    const id = session.session_id;
    const revision = Number(event.id);
    if (!this.pending.has(id) || revision <= (this.#revisions.get(id) ?? -1)) return undefined;
    this.#revisions.set(id, revision);
    this.states.set(id, session);
    if (isFinal(session)) this.pending.delete(id);
    return session;
  }
}
