//! The README's example: an order and its job commit together, and so do the job and its result.

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use pq_diesel::{Error, Pq, Settings, Wait};

mod tables {
    diesel::table! {
        parcels (order_no) { order_no -> BigInt, }
    }
}
use tables::parcels;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pq = Pq::connect(Settings::from_env().conninfo())?;
    pq.migrate()?; // safe to call at every start, from every process
    let orders = pq.queue::<i64>("orders")?;

    // Put on your own connection, inside your own transaction. The job exists if and only if the order does.
    let mut conn = PgConnection::establish(Settings::from_env().conninfo())?;
    conn.batch_execute("CREATE TEMP TABLE IF NOT EXISTS shop_order (no bigint)")?;
    conn.batch_execute("CREATE TABLE IF NOT EXISTS parcels (order_no bigint PRIMARY KEY)")?;
    conn.transaction(|conn| {
        conn.batch_execute("INSERT INTO shop_order VALUES (42)")?;
        orders.on(conn).put(&42)?;
        Ok::<_, Error>(())
    })?;

    // Get, and wait up to a second. The closure's writes commit with the job, or not at all.
    let sent = orders.get_with(Wait::default(), |conn, job| {
        diesel::insert_into(parcels::table).values(parcels::order_no.eq(job.data)).execute(conn)?;
        Ok::<_, Error>(job.data)
    })?;
    assert_eq!(sent, Some(42));
    conn.batch_execute("DROP TABLE parcels")?;
    Ok(())
}
