-- The tables of the payment service. The same text holds for SQLite and Postgres.

CREATE TABLE IF NOT EXISTS inbox (
    event_id TEXT PRIMARY KEY,
    order_id TEXT NOT NULL,
    number BIGINT NOT NULL,
    outcome TEXT NOT NULL,             -- is published again with each redelivery
    UNIQUE (order_id, number)
);

-- Nothing here keeps an order from being charged twice: that is what the inbox is for.
CREATE TABLE IF NOT EXISTS ledger (
    order_id TEXT NOT NULL,
    number BIGINT NOT NULL,
    amount BIGINT NOT NULL             -- in cents; a refund is negative
);

CREATE INDEX IF NOT EXISTS ledger_order ON ledger (order_id);
