-- Sessions and ledger entries have accounts, as before, for a fifth of the price. A foreign key looks
-- each row's account up and locks it, which was a fifth of what a submission cost the database. An
-- account is never deleted and never changes its owner, so no lock is needed, and one look-up for
-- all rows of a statement is enough.

-- All locks first, in the order of a refund, which locks sessions before accounts.
LOCK TABLE generation_sessions, credit_ledger, credit_accounts IN ACCESS EXCLUSIVE MODE;

CREATE FUNCTION refuse_account() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% (%:%)', TG_ARGV[0], coalesce(OLD.channel, NEW.channel),
        coalesce(OLD.owner_id, NEW.owner_id) USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER account_is_kept BEFORE DELETE OR UPDATE OF channel, owner_id ON credit_accounts
    FOR EACH ROW EXECUTE FUNCTION refuse_account('an account is kept, with its owner');

-- A subquery in a comparison, because it is looked up in the accounts' index whatever the planner
-- knows of the inserted rows.
CREATE FUNCTION require_accounts() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF EXISTS (SELECT FROM inserted AS new_row WHERE (
        SELECT true FROM credit_accounts AS account
        WHERE account.channel = new_row.channel AND account.owner_id = new_row.owner_id) IS NULL)
    THEN
        RAISE EXCEPTION '%: an owner has no account', TG_TABLE_NAME USING
            ERRCODE = 'foreign_key_violation', TABLE = TG_TABLE_NAME,
            CONSTRAINT = 'owner_has_an_account';
    END IF;
    RETURN NULL;
END $$;
DO $$ BEGIN
    EXECUTE format('ALTER FUNCTION %1$I.require_accounts()'
        ' SET search_path = pg_catalog, %1$I, pg_temp', current_schema());
    EXECUTE format('ALTER FUNCTION %1$I.refuse_account()'
        ' SET search_path = pg_catalog, %1$I, pg_temp', current_schema());
END $$;
CREATE TRIGGER owner_has_an_account AFTER INSERT ON generation_sessions
    REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION require_accounts();
CREATE TRIGGER owner_has_an_account AFTER INSERT ON credit_ledger
    REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION require_accounts();

ALTER TABLE generation_sessions DROP CONSTRAINT generation_sessions_channel_owner_id_fkey;
ALTER TABLE credit_ledger DROP CONSTRAINT credit_ledger_channel_owner_id_fkey;

-- A CHECK is parsed anew for every statement that writes the table; a trigger on a column costs the
-- statements that leave the column alone nothing.
ALTER TABLE credit_accounts DROP CONSTRAINT credit_accounts_plan_check;
CREATE TRIGGER plan_is_known BEFORE INSERT OR UPDATE OF plan ON credit_accounts FOR EACH ROW
    WHEN (NEW.plan NOT IN ('default', 'starter', 'growth', 'scale', 'enterprise'))
    EXECUTE FUNCTION refuse_account('an account has one of the known plans');
