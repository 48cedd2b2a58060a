//! The orders, and the work that each of them makes.

use std::time::Duration;

use diesel::prelude::*;
use diesel_async::pooled_connection::AsyncDieselConnectionManager;
use diesel_async::pooled_connection::deadpool::Pool;
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use pq_diesel_async::{Backoff, Error, Pq, Task, Worker};
use serde::{Deserialize, Serialize};

/// The connections of the pool that requests and handlers share.
const POOL_SIZE: usize = 16;

/// Handlers that run at the same time. Each has a connection of the pool, and requests need the others.
const HANDLERS: usize = 8;

/// How long a job under a lease waits after the process that ran it was killed. The worker extends the leases of what
/// it runs. A job that was run in the transaction that took it is ready at once, and then runs under a lease.
const LEASE: Duration = Duration::from_secs(5);

diesel::table! {
    shop_order (id) {
        id -> BigInt,
        item -> Text,
        quantity -> Integer,
    }
}

diesel::table! {
    parcel (id) {
        id -> BigInt,
        order_id -> BigInt,
    }
}

/// An order, as a customer sends it.
#[derive(Insertable, Deserialize)]
#[diesel(table_name = shop_order)]
pub struct NewOrder {
    item: String,
    quantity: i32,
}

/// The arguments of the task `pack`.
#[derive(Serialize, Deserialize)]
struct Pack {
    order: i64,
}

/// The shop's connections and its task.
#[derive(Clone)]
pub struct Shop {
    pool: Pool<AsyncPgConnection>,
    pq: Pq,
    pack: Task<Pack>,
}

impl Shop {
    /// Opens the pool, and creates the tables that are missing.
    pub async fn open(url: &str) -> anyhow::Result<Self> {
        let pool = Pool::builder(AsyncDieselConnectionManager::<AsyncPgConnection>::new(url))
            .max_size(POOL_SIZE)
            .build()?;
        // With the URL as well as the pool, waits are woken by notifications, and the worker has connections of its
        // own.
        let pq = Pq::builder().url(url).deadpool(pool.clone()).build()?;
        pq.migrate().await?;
        pool.get().await?.batch_execute(include_str!("../schema.sql")).await?;
        let pack =
            pq.queue("orders")?.task("pack").max_retries(10).backoff(Backoff::fixed(Duration::from_secs(2)));
        Ok(Self { pool, pq, pack })
    }

    /// Writes the order, and calls the task in the same transaction. Returns the order's id.
    pub async fn order(&self, order: NewOrder) -> anyhow::Result<i64> {
        let mut conn = self.pool.get().await?;
        let id = conn
            .transaction(async |conn| {
                let id = diesel::insert_into(shop_order::table)
                    .values(order)
                    .returning(shop_order::id)
                    .get_result(conn)
                    .await?;
                self.pack.on(conn).call(&Pack { order: id }).await?;
                Ok::<_, Error>(id)
            })
            .await?;
        Ok(id)
    }

    /// Returns the worker of the shop's jobs. What a handler writes commits with its job.
    pub fn worker(&self) -> anyhow::Result<Worker> {
        let pack = self.pack.transactional_async(async |conn, job| {
            diesel::insert_into(parcel::table)
                .values(parcel::order_id.eq(job.data.order))
                .execute(conn)
                .await
                .map(drop)
        });
        Ok(Worker::new(&self.pq).serve(pack).concurrency(HANDLERS).lease(LEASE))
    }

    /// Asks the database for its time.
    pub async fn ping(&self) -> Result<(), Error> {
        self.pq.now().await.map(drop)
    }
}
