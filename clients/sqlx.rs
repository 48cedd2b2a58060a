//! Puts a job by sqlx, in the transaction that inserts an order.

use std::error::Error;

use serde_json::json;
use sqlx::{Connection, PgConnection};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut conn = PgConnection::connect(&std::env::var("PQ_URL")?).await?;
    order(&mut conn, 1, true).await?;
    order(&mut conn, 2, false).await?;
    Ok(conn.close().await?)
}

/// Inserts an order with the job that mails it. Both exist after the commit, and neither after a rollback.
async fn order(conn: &mut PgConnection, number: i32, is_paid: bool) -> Result<(), sqlx::Error> {
    let mut transaction = conn.begin().await?;
    sqlx::query("INSERT INTO client_order VALUES ('sqlx', $1)")
        .bind(number)
        .execute(&mut *transaction)
        .await?;
    let mail = json!({ "to": format!("sqlx-{number}@example.com"), "subject": "Your order" });
    // sqlx sends JSON values as jsonb, which the function does not take. It takes text that is cast.
    let call = "
        SELECT pq.queue_call('shop', 'shop.mail', kwargs => $1::json, max_retries => 5, backoff => 'exponential 1s 1h')";
    let id: i64 = sqlx::query_scalar(call).bind(mail.to_string()).fetch_one(&mut *transaction).await?;
    println!("order {number} has job {id}");
    if is_paid { transaction.commit().await } else { transaction.rollback().await }
}
