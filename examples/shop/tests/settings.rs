//! The settings that the shop refuses.

use std::process::Command;

#[test]
fn a_shop_without_a_database_says_which_variable_names_it() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_shop")).env_remove("DATABASE_URL").output().expect("an output");
    assert!(!output.status.success());
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("DATABASE_URL names the database"), "{error}");
}
