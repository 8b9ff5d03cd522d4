/** Client of the wearon API, for browsers and Node. */

export * from "./client.js";
export * from "./errors.js";
export * from "./models.js";
export type { Token } from "./http.js";
export type { Retries } from "./retries.js";
export { verifyWebhook, type VerifyOptions } from "./webhooks.js";
