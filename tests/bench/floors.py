"""The baselines: the plain way to do the same work on the same servers.

PostgreSQL's pgbench, which comes with the server, runs the transactions as prepared statements.
Redis is called over a plain socket: ``python -m tests.bench.floors SOCKET KEY N`` pops N messages
and prints the time at which each arrived.
"""

import json
import re
import socket
import subprocess
import sys
import time
from statistics import median

from adapters.embedded.postgres import PORT, USER, find_postgres
from domain.sessions import DEFAULT_PROMPT
from tests.bench.figures import Sample, percentile
from tests.bench.load import BODY, Void
from tests.bench.stage import ACCOUNTS, ROOT, SESSION_ID, Stage

_LIST = "bench:list"
_SHORT_SECONDS = 0.05
_BODY = json.loads(BODY)
_PROMPT = "'" + DEFAULT_PROMPT.replace("'", "''") + "'"


def _submission(owner: str) -> str:
    """The writes of a submission, as a hand-written transaction."""
    return f"""
\\set owner {owner}
BEGIN;
UPDATE credit_accounts SET balance = balance - 1, total_debited = total_debited + 1 \
WHERE channel = 'b2b' AND owner_id = :owner AND balance >= 1;
INSERT INTO generation_sessions (id, channel, store_id, request_id, prompt, model_image_url, \
outfit_image_url, accessories) \
VALUES (gen_random_uuid(), 'b2b', :owner, 'req_0123456789abcdef01234567', {_PROMPT}, \
'{_BODY["model_image_url"]}', '{_BODY["outfit_image_url"]}', \
'{json.dumps(_BODY["accessories"])}') RETURNING id AS session \\gset
INSERT INTO credit_ledger (channel, owner_id, kind, amount, session_id) \
VALUES ('b2b', :owner, 'debit', -1, :session);
COMMIT;
"""  # noqa: S608 - put together from literals


ON_ONE_ROW = _submission("0")
ON_MANY_ROWS = _submission(f"random(1, {ACCOUNTS})")

_ID = SESSION_ID.format(number=":number")
CLAIM_AND_SETTLE = f"""
\\set number :number + 1
UPDATE generation_sessions SET status = 'processing', attempt = attempt + 1, \
lease_expires_at = now() + interval '30 seconds', started_at = now() \
WHERE id = {_ID} AND status = 'queued' RETURNING id, attempt, prompt, model_image_url, \
outfit_image_url, accessories;
UPDATE generation_sessions SET status = 'completed', \
object_key = 'stores/' || store_id || '/generated/' || id || '.jpg', \
media_type = 'image/jpeg', lease_expires_at = NULL, completed_at = now() \
WHERE id = {_ID} AND status = 'processing' AND attempt = 1;
"""  # noqa: S608 - put together from literals


def pgbench(stage: Stage, script: str, *options: str, connections: int = 1) -> Sample:
    """Run ``script`` repeatedly on this many connections: transactions per second, and their
    latencies. Raises ``Void`` if a transaction fails."""
    file, log = stage.folder / "script.sql", stage.folder / "transactions"
    file.write_text(script)
    for old in stage.folder.glob("transactions.*"):
        old.unlink()
    installation = find_postgres()
    command = [
        str((installation.root / installation.program).with_name("pgbench")),
        *("-n", "-M", "prepared", "-c", str(connections), "-j", "1", "-D", "number=0"),
        *("-l", f"--log-prefix={log}", "-f", str(file), *options),
        *("-h", str(stage.postgres.sockets), "-p", PORT, "-U", USER, "wearon"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    rate = re.search(r"^tps = ([\d.]+)", done.stdout, re.MULTILINE)
    if done.returncode != 0 or rate is None or "failed transactions: 0 " not in done.stdout:
        raise Void(f"pgbench failed: {done.stdout}{done.stderr}")
    latencies_us = [
        float(line.split()[2])
        for part in stage.folder.glob("transactions.*")
        for line in part.read_text().splitlines()
    ]
    return {
        "rate": float(rate[1]),
        "p50_us": percentile(latencies_us, 50),
        "p99_us": percentile(latencies_us, 99),
    }


class PlainRedis:
    """One connection for one command at a time, without a client library."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)

    def call(self, *words: bytes) -> bytes:
        """The raw reply. Reads only replies that end with their first line end: short ones."""
        parts = [b"$%d\r\n%b\r\n" % (len(word), word) for word in words]
        self._socket.sendall(b"*%d\r\n" % len(words) + b"".join(parts))
        reply = self._socket.recv(65_536)
        while not reply.endswith(b"\r\n"):
            reply += self._socket.recv(65_536)
        return reply

    def close(self) -> None:
        self._socket.close()


def pushes(stage: Stage, *, seconds: float, task: bytes) -> Sample:
    """Latencies of repeated LPUSHes of a task."""
    redis = PlainRedis(stage.redis_socket)
    latencies_us = []
    ends_at = time.perf_counter() + seconds
    while (started_at := time.perf_counter()) < ends_at:
        redis.call(b"LPUSH", _LIST.encode(), task)
        latencies_us.append((time.perf_counter() - started_at) * 1e6)
    redis.call(b"DEL", _LIST.encode())
    redis.close()
    return {"p50_us": median(latencies_us), "p99_us": percentile(latencies_us, 99)}


def wake_ups(stage: Stage, *, times: int, task: bytes) -> Sample:
    """Latencies from sending an LPUSH until another process receives the task from its BRPOP."""
    command = [sys.executable, "-m", "tests.bench.floors", stage.redis_socket, _LIST, str(times)]
    waiting = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert waiting.stdout is not None
    redis = PlainRedis(stage.redis_socket)
    latencies_us = []
    try:
        for _ in range(times):
            waiting.stdout.readline()  # The process is about to send its BRPOP.
            time.sleep(_SHORT_SECONDS)
            sent_at = time.clock_gettime(time.CLOCK_MONOTONIC)
            redis.call(b"LPUSH", _LIST.encode(), task)
            latencies_us.append((float(waiting.stdout.readline()) - sent_at) * 1e6)
    finally:
        redis.close()
        waiting.kill()
        waiting.wait()
        waiting.stdout.close()
    return {
        "p50_us": percentile(latencies_us, 50),
        "p99_us": percentile(latencies_us, 99),
        "all_us": latencies_us,
    }


def _pop(path: str, key: str, times: int) -> None:
    redis = PlainRedis(path)
    for _ in range(times):
        sys.stdout.write("waiting\n")
        sys.stdout.flush()
        redis.call(b"BRPOP", key.encode(), b"10")
        sys.stdout.write(f"{time.clock_gettime(time.CLOCK_MONOTONIC):.9f}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _pop(sys.argv[1], sys.argv[2], int(sys.argv[3]))
