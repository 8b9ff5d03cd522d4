/** Server-sent events, as the WHATWG's HTML standard defines them, from any split of the bytes. */

const MAX_EVENT_CHARACTERS = 2 ** 20;

/**
 * One event. `id` is null unless the event itself has one: here it is the revision of one session,
 * which later events of other sessions must not inherit.
 */
export interface ServerEvent {
  type: string;
  data: string;
  id: string | null;
}

/** Parses one stream. `retrySeconds` is the reconnection time that the server asked for. */
export class EventParser {
  retrySeconds: number | undefined;
  readonly #decoder = new TextDecoder();
  #afterCr = false;
  #rest = "";
  #size = 0;
  #type = "";
  #data: string[] = [];
  #id: string | null = null;

  /** The events that end in these bytes. Throws a RangeError if one is too large. */
  *feed(bytes: Uint8Array): Generator<ServerEvent> {
    let text = this.#decoder.decode(bytes, { stream: true });
    if (text !== "") {
      // A CR ends a line at once, so a LF that follows belongs to it.
      if (this.#afterCr && text.startsWith("\n")) text = text.slice(1);
      this.#afterCr = text.endsWith("\r");
    }
    const lines = (this.#rest + text).split(/\r\n|\r|\n/);
    this.#rest = lines.pop() ?? "";
    for (const line of lines) {
      this.#size += line.length;
      this.#check(this.#size);
      if (line !== "") this.#field(line);
      else yield* this.#dispatch();
    }
    this.#check(this.#size + this.#rest.length);
  }

  #check(size: number): void {
    if (size > MAX_EVENT_CHARACTERS) throw new RangeError("the event is too large");
  }

  #field(line: string): void {
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "event") this.#type = value;
    else if (name === "data") this.#data.push(value);
    else if (name === "id" && !value.includes("\0")) this.#id = value;
    else if (name === "retry" && /^\d+$/.test(value)) {
      this.retrySeconds = Number(value.slice(0, 9)) / 1000;
    }
  }

  *#dispatch(): Generator<ServerEvent> {
    const event = { type: this.#type || "message", data: this.#data.join("\n"), id: this.#id };
    const isEmpty = this.#data.length === 0;
    [this.#type, this.#data, this.#id, this.#size] = ["", [], null, 0];
    if (!isEmpty) yield event;
  }
}
