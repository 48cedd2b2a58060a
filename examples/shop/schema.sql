-- The shop's own tables. A larger application has migrations instead: see docs/embedding.md.
CREATE TABLE IF NOT EXISTS shop_order (
    id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    item text NOT NULL,
    quantity int NOT NULL
);
-- No constraint forbids two parcels for an order. The queue alone makes sure that there is one, and ci/shop counts.
CREATE TABLE IF NOT EXISTS parcel (
    id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    order_id bigint NOT NULL REFERENCES shop_order
);
