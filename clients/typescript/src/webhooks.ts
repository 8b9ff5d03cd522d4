/**
 * Verification of webhooks (Standard Webhooks, standardwebhooks.com): an HMAC-SHA256 over
 * `id.timestamp.body`.
 */

import { InvalidWebhook } from "./errors.js";
import type { WebhookEvent } from "./models.js";

export interface VerifyOptions {
  /** How far the webhook's time may be from now. */
  toleranceSeconds?: number;
  /** Unix seconds. */
  now?: number;
}

type WebhookHeaders = Headers | Record<string, string | string[] | undefined>;

/**
 * The event of a webhook, if one of its signatures is made with one of the secrets (`whsec_...`) and
 * its time is within the tolerance (5 minutes). `body` is the body as it was received, not parsed
 * and written again. Throws InvalidWebhook.
 */
export async function verifyWebhook(
  body: string | Uint8Array,
  headers: WebhookHeaders,
  secret: string | readonly string[],
  { toleranceSeconds = 300, now = Date.now() / 1000 }: VerifyOptions = {},
): Promise<WebhookEvent> {
  const raw = typeof body === "string" ? new TextEncoder().encode(body) : body;
  const id = header(headers, "webhook-id");
  const timestamp = header(headers, "webhook-timestamp");
  const signatures = header(headers, "webhook-signature");
  checkTime(timestamp, now, toleranceSeconds);
  const signed = concatenated(new TextEncoder().encode(`${id}.${timestamp}.`), raw);
  const secrets = typeof secret === "string" ? [secret] : secret;
  if (!(await isSigned(signed, signatures, secrets))) {
    throw new InvalidWebhook("no signature matches");
  }
  return eventOf(raw);
}

function header(headers: WebhookHeaders, name: string): string {
  const value =
    headers instanceof Headers
      ? headers.get(name)
      : Object.entries(headers).find(([given]) => given.toLowerCase() === name)?.[1];
  if (typeof value !== "string" || value === "") {
    throw new InvalidWebhook(`the header ${name} is missing`);
  }
  return value;
}

function checkTime(timestamp: string, now: number, toleranceSeconds: number): void {
  if (!/^\d{1,12}$/.test(timestamp)) {
    throw new InvalidWebhook("webhook-timestamp is no number of seconds");
  }
  if (Math.abs(now - Number(timestamp)) > toleranceSeconds) {
    throw new InvalidWebhook("webhook-timestamp is too far from now");
  }
}

/** `crypto.subtle.verify` compares in constant time. */
async function isSigned(
  signed: Uint8Array<ArrayBuffer>,
  signatures: string,
  secrets: readonly string[],
): Promise<boolean> {
  const given = signatures.split(" ").filter((text) => text.startsWith("v1,"));
  for (const secret of secrets) {
    const key = await keyOf(secret);
    for (const text of given) {
      const signature = decoded(text.slice(3));
      if (signature && (await crypto.subtle.verify("HMAC", key, signature, signed))) return true;
    }
  }
  return false;
}

async function keyOf(secret: string): Promise<CryptoKey> {
  const key = decoded(secret.replace(/^whsec_/, ""));
  if (!key?.length) throw new TypeError("a webhook's secret is `whsec_` and base64");
  return crypto.subtle.importKey("raw", key, { name: "HMAC", hash: "SHA-256" }, false, ["verify"]);
}

function decoded(base64: string): Uint8Array<ArrayBuffer> | undefined {
  try {
    return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  } catch {
    return undefined;
  }
}

function concatenated(first: Uint8Array, second: Uint8Array): Uint8Array<ArrayBuffer> {
  const whole = new Uint8Array(first.length + second.length);
  whole.set(first);
  whole.set(second, first.length);
  return whole;
}

function eventOf(raw: Uint8Array): WebhookEvent {
  let event: WebhookEvent | null;
  try {
    event = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(raw)) as typeof event;
  } catch (error) {
    throw new InvalidWebhook("the body is no JSON", { cause: error });
  }
  if (typeof event?.type !== "string") throw new InvalidWebhook("the body is no event");
  return event;
}
