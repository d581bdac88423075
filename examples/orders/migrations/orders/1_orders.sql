-- The tables of the order service. The same text holds for SQLite and Postgres.

CREATE TABLE IF NOT EXISTS orders (
    id TEXT PRIMARY KEY,
    item TEXT NOT NULL,
    amount BIGINT NOT NULL,            -- in cents
    status TEXT NOT NULL,
    events BIGINT NOT NULL,            -- how many events there have been
    settled BIGINT NOT NULL DEFAULT 0  -- the last event whose outcome is known
);

CREATE TABLE IF NOT EXISTS outbox (
    id TEXT PRIMARY KEY,               -- the id of the event, and of its message
    order_id TEXT NOT NULL,
    number BIGINT NOT NULL,            -- which event of its order, from 1
    body TEXT NOT NULL,
    traceparent TEXT,                  -- the trace of the request that it is part of
    published_at TEXT,
    UNIQUE (order_id, number)
);

CREATE INDEX IF NOT EXISTS outbox_unpublished ON outbox (id) WHERE published_at IS NULL;
