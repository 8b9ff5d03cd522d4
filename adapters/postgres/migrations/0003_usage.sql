-- What making the picture took of its provider, where that is known: its tokens, and what they cost
-- by the prices that were set at the time, in US dollars.

ALTER TABLE generation_sessions
    ADD COLUMN input_tokens integer CHECK (input_tokens >= 0),
    ADD COLUMN output_tokens integer CHECK (output_tokens >= 0),
    ADD COLUMN estimated_cost_usd numeric(14, 6) CHECK (estimated_cost_usd >= 0),
    ADD CONSTRAINT usage_is_whole
        CHECK (num_nulls(input_tokens, output_tokens, estimated_cost_usd) IN (0, 3));
