//! Puts a job by tokio-postgres, in the transaction that inserts an order.

use std::error::Error;

use serde_json::json;
use tokio_postgres::{Client, NoTls};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let (mut client, connection) = tokio_postgres::connect(&std::env::var("PQ_URL")?, NoTls).await?;
    let connection = tokio::spawn(connection);
    order(&mut client, 1, true).await?;
    order(&mut client, 2, false).await?;
    drop(client);
    Ok(connection.await??)
}

/// Inserts an order with the job that mails it. Both exist after the commit, and neither after a rollback.
async fn order(client: &mut Client, number: i32, is_paid: bool) -> Result<(), tokio_postgres::Error> {
    let transaction = client.transaction().await?;
    transaction.execute("INSERT INTO client_order VALUES ('tokio-postgres', $1)", &[&number]).await?;
    let mail = json!({ "to": format!("tokio-postgres-{number}@example.com"), "subject": "Your order" });
    let call = "
        SELECT pq.queue_call('shop', 'shop.mail', kwargs => $1, max_retries => 5, backoff => 'exponential 1s 1h')";
    let id: i64 = transaction.query_one(call, &[&mail]).await?.get(0);
    println!("order {number} has job {id}");
    if is_paid { transaction.commit().await } else { transaction.rollback().await }
}
