//! A shop that stores an order and puts its job in one transaction, on the application's own connection.
//!
//! If the payment is refused, neither the order nor the job exists. The job cannot run before the order is committed.

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use pq_diesel::{Error, Pq, PutOptions, Settings};
use serde::{Deserialize, Serialize};

mod tables {
    diesel::table! {
        shop_orders (id) {
            id -> BigInt,
            customer -> Text,
            cents -> Integer,
        }
    }
}
use tables::shop_orders;

#[derive(Debug, Serialize, Deserialize)]
struct Confirmation {
    order: i64,
    to: String,
}

/// Stores an order and puts the job that confirms it, or does neither.
fn place_order(conn: &mut PgConnection, customer: &str, cents: i32) -> Result<i64, Error> {
    // A detached handle has no connection. It works on those of the application.
    let confirmations = Pq::detached().queue::<Confirmation>("confirmations")?;
    conn.transaction(|conn| {
        let id = diesel::insert_into(shop_orders::table)
            .values((shop_orders::customer.eq(customer), shop_orders::cents.eq(cents)))
            .returning(shop_orders::id)
            .get_result(conn)?;
        let job = Confirmation { order: id, to: customer.to_owned() };
        // Large orders are confirmed first.
        confirmations.on(conn).put_with(&job, &PutOptions::new().priority(cents / 10_000))?;
        // The payment comes last. If it is refused, the order and its job are rolled back together.
        if !charge(customer, cents) {
            return Err(diesel::result::Error::RollbackTransaction.into());
        }
        Ok(id)
    })
}

/// Simulates the payment. Returns whether it succeeded.
fn charge(_customer: &str, cents: i32) -> bool {
    cents > 0
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut conn = PgConnection::establish(Settings::from_env().conninfo())?;
    Pq::detached().migrate_on(&mut conn)?;
    conn.batch_execute(
        "DROP TABLE IF EXISTS shop_orders;
         CREATE TABLE shop_orders (
             id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer text NOT NULL, cents integer NOT NULL)",
    )?;
    let confirmations = Pq::detached().queue::<Confirmation>("confirmations")?;
    confirmations.on(&mut conn).clear()?;

    place_order(&mut conn, "ada@example.org", 1_250)?;
    place_order(&mut conn, "grace@example.org", 99_900)?;
    assert!(place_order(&mut conn, "nobody@example.org", 0).is_err());

    let orders: i64 = shop_orders::table.count().get_result(&mut conn)?;
    let jobs = confirmations.on(&mut conn).counts()?;
    println!("{orders} orders, {} jobs", jobs.ready);
    assert_eq!((orders, jobs.ready), (2, 2));

    let first = confirmations.on(&mut conn).get()?.ok_or("two jobs were put")?;
    println!("next job: {first}, for {}", first.data.to);
    assert_eq!(first.data.to, "grace@example.org");
    confirmations.on(&mut conn).clear()?;
    conn.batch_execute("DROP TABLE shop_orders")?;
    Ok(())
}
