/**
 * The JSON of the API. These types describe it and check nothing at run time, so fields, codes and
 * statuses that a newer service adds pass through unchanged.
 */

/** Also accepts values that this client does not know. */
type Open<Known extends string> = Known | (string & {});

/** `completed` and `failed` are final. */
export type SessionStatus = Open<"queued" | "processing" | "completed" | "failed">;

/** One further item to wear. */
export interface Accessory {
  type: string;
  url: string;
}

/** A try-on request: a person and the items to wear. `prompt` is for stores only. */
export interface NewGeneration {
  model_image_url: string;
  outfit_image_url?: string | null;
  accessories?: Accessory[] | null;
  prompt?: string | null;
  age_verified?: boolean | null;
}

/** One request of a batch. */
export interface BatchItem extends NewGeneration {
  idempotency_key?: string | null;
}

/** An accepted and charged request: its session will reach a final status. */
export interface Submitted {
  session_id: string;
  status: SessionStatus;
  status_url: string;
  credits_remaining: number | null;
  pictures_remaining: number | null;
  created_at: string;
}

/** A generation session. Timestamps are ISO 8601, UTC; `estimated_cost_usd` is a decimal as text. */
export interface Session {
  session_id: string;
  status: SessionStatus;
  channel: Open<"b2b" | "b2c">;
  model_image_url: string | null;
  outfit_image_url: string | null;
  accessories: Accessory[];
  shopper_id: string | null;
  prompt: string | null;
  age_verified: boolean | null;
  generated_image_url: string | null;
  image_expired: boolean;
  media_type: string | null;
  error_code: string | null;
  error_message: string | null;
  attempt: number;
  queue_position: number | null;
  request_id: string;
  created_at: string;
  started_at: string | null;
  cancel_requested_at: string | null;
  completed_at: string | null;
  processing_time_ms: number | null;
  erased_at: string | null;
  input_tokens: number | null;
  output_tokens: number | null;
  estimated_cost_usd: string | null;
  status_url: string;
}

/** One page of sessions, newest first; `next_cursor` is null on the last page. */
export interface SessionPage {
  items: Session[];
  next_cursor: string | null;
}

/** An error: a code for programs, a message for people. */
export interface ErrorBody {
  code: string;
  message: string;
}

/**
 * The answer to one item of a batch: what a request of its own would have got. `replayed` if an
 * earlier request with its key was accepted.
 */
export interface BatchResult {
  status: number;
  data: Submitted | null;
  error: ErrorBody | null;
  replayed: boolean;
}

/**
 * A verified webhook. `data` is a `Session` for `generation.completed` and `generation.failed`;
 * other types have data of their own.
 */
export interface WebhookEvent {
  type: Open<"generation.completed" | "generation.failed" | "credits.low">;
  timestamp: string;
  data: unknown;
}

/** Whether the session changes no more. */
export function isFinal(session: { status: string }): boolean {
  return session.status === "completed" || session.status === "failed";
}
