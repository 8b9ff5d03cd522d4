-- An entry is only ever asked for with its owner. With the number alone as the key, a server that
-- thinks that an owner has many entries looks for them among the newest of everybody, and where the
-- owner was idle for long it reads all that came since. It is an index less to write, too.
ALTER TABLE credit_ledger
    DROP CONSTRAINT credit_ledger_pkey,
    ADD PRIMARY KEY (channel, owner_id, id);
DROP INDEX ledger_of_owner;
