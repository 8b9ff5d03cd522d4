"""Names of OpenTelemetry's semantic conventions, of the version that ``SCHEMA_URL`` pins.

Those of messaging may still change in the conventions; the others are stable. Literals, because the
package of the conventions has messaging's names only in a module that it calls unstable.
"""

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"

ERROR_TYPE = "error.type"

HTTP_REQUEST_METHOD = "http.request.method"
HTTP_RESPONSE_STATUS_CODE = "http.response.status_code"
HTTP_ROUTE = "http.route"
NETWORK_PROTOCOL_VERSION = "network.protocol.version"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
URL_FULL = "url.full"
URL_PATH = "url.path"
URL_SCHEME = "url.scheme"
OTHER_METHOD = "_OTHER"
REDACTED = "REDACTED"

DB_SYSTEM_NAME = "db.system.name"
DB_OPERATION_NAME = "db.operation.name"
DB_OPERATION_BATCH_SIZE = "db.operation.batch.size"
DB_QUERY_SUMMARY = "db.query.summary"
DB_RESPONSE_STATUS_CODE = "db.response.status_code"
POSTGRESQL = "postgresql"

MESSAGING_SYSTEM = "messaging.system"
MESSAGING_DESTINATION_NAME = "messaging.destination.name"
MESSAGING_OPERATION_NAME = "messaging.operation.name"
MESSAGING_OPERATION_TYPE = "messaging.operation.type"
MESSAGING_MESSAGE_ID = "messaging.message.id"
MESSAGING_BATCH_MESSAGE_COUNT = "messaging.batch.message_count"
REDIS = "redis"

REQUEST_ID = "wearon.request_id"
SESSION_ID = "wearon.session_id"
OUTCOME = "wearon.outcome"
