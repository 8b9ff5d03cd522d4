// Runs calls of the TypeScript client: one JSON text per line in, one out.
import { createInterface } from "node:readline";

const module = (name) => import(new URL(name, process.argv[2]));
const client = await module("index.js");
const { EventParser } = await module("sse.js");
const { retryAfterSeconds } = await module("retries.js");

const camel = (name) => name.replace(/_(\w)/g, (_, letter) => letter.toUpperCase());
const renamed = (options) =>
  Object.fromEntries(Object.entries(options).map(([name, value]) => [camel(name), value]));
const bytes = (base64) => new Uint8Array(Buffer.from(base64, "base64"));

function next(tokens) {
  if (tokens.length === 0) throw new Error("no token");
  return Promise.resolve(tokens.shift());
}

function parse(pieces) {
  const parser = new EventParser();
  const events = pieces.flatMap((piece) => [...parser.feed(bytes(piece))]);
  return { events, retry_seconds: parser.retrySeconds ?? null };
}

async function call({ target, method, args, options }, updates) {
  if (method === "parse") return parse(...args);
  if (method === "retry_after") return retryAfterSeconds(...args);
  if (method === "verify_webhook") {
    return client.verifyWebhook(bytes(args[0]), args[1], args[2], renamed(options));
  }
  const token = target.tokens ? () => next(target.tokens) : target.token;
  const wearon = new client.Wearon({ ...renamed(target), token, retries: renamed(target.retries) });
  const onUpdate = async (session) => {
    const pause = updates.length === 0 ? (target.first_update_ms ?? 0) : 0;
    await new Promise((resolve) => setTimeout(resolve, pause));
    updates.push(session);
    if (session.status === target.refuses) throw new Error("refused");
  };
  if (method.startsWith("subscribe")) args.push(onUpdate);
  if (method === "subscribe_all") options.onOpen = () => updates.push({ opened: true });
  if (method === "upload") args = [bytes(args[0])];
  if (options.abort_ms !== undefined) options.signal = AbortSignal.timeout(options.abort_ms);
  const result = await wearon[camel(method)](...args, renamed(options));
  return result instanceof Map ? Object.fromEntries(result) : result;
}

function described(error) {
  return {
    name: error.name,
    message: error.message,
    status: error.status,
    code: error.code,
    request_id: error.requestId,
    retry_after_seconds: error.retryAfterSeconds,
    session_id: error.sessionId,
    idempotency_key: error.idempotencyKey,
    last: error.last,
  };
}

for await (const line of createInterface({ input: process.stdin })) {
  const updates = [];
  const outcome = { updates };
  try {
    outcome.result = await call(JSON.parse(line), updates);
  } catch (error) {
    outcome.error = described(error);
  }
  process.stdout.write(`${JSON.stringify(outcome)}\n`);
}
