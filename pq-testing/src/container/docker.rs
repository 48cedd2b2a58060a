//! The Docker daemon: whether it answers, and the removal of stale containers.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::time::Duration;

use testcontainers::bollard;
use testcontainers::bollard::query_parameters::{
    ListContainersOptionsBuilder, RemoveContainerOptionsBuilder,
};
use testcontainers::core::client::docker_client_instance;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use crate::error::Error;
use crate::owner::Owner;

/// The label that names the process a container belongs to.
pub(super) const OWNER_LABEL: &str = "pq-testing.owner";

/// A running daemon answers within milliseconds, on a busy machine within seconds.
const ANSWER: Duration = Duration::from_secs(10);

const PATIENCE: Duration = Duration::from_secs(30);

/// Returns the value of the label for this process.
pub(super) fn owner() -> String {
    Owner::current().to_string()
}

/// Returns an error's text with its causes, without which many of Docker's errors say nothing.
pub(super) fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // Some errors repeat their cause in their own text.
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// A Docker daemon that answered.
pub(super) struct Docker {
    runtime: Runtime,
    client: bollard::Docker,
}

impl Docker {
    pub(super) fn connect() -> Result<Self, Error> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Error::io("start a runtime for the Docker client"))?;
        let answer = runtime.block_on(async {
            timeout(ANSWER, async {
                let client = docker_client_instance().await.map_err(|error| chain(&error))?;
                client.ping().await.map_err(|error| chain(&error))?;
                Ok(client)
            })
            .await
        });
        let no =
            |detail: String| Error::NoDocker { reason: format!("no Docker daemon is reachable ({detail})") };
        let client = answer.map_err(|_| no(format!("nothing within {ANSWER:?}")))?.map_err(no)?;
        Ok(Self { runtime, client })
    }

    /// Removes a container and its volumes, if it exists.
    pub(super) fn remove(&self, name: &str) {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        let removed = self
            .runtime
            .block_on(async { timeout(PATIENCE, self.client.remove_container(name, Some(options))).await });
        match removed {
            Ok(Ok(())) => tracing::debug!(name, "removed a container"),
            Ok(Err(error)) => tracing::debug!(name, %error, "cannot remove a container"),
            Err(_) => tracing::debug!(name, "timed out removing a container"),
        }
    }

    /// Removes the containers whose owners have ended.
    pub(super) fn remove_stale(&self) {
        let filters = HashMap::from([("label", vec![OWNER_LABEL])]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let listed = self
            .runtime
            .block_on(async { timeout(PATIENCE, self.client.list_containers(Some(options))).await });
        let Ok(Ok(containers)) = listed else {
            tracing::debug!("cannot list the containers");
            return;
        };
        for container in containers {
            let owner =
                container.labels.as_ref().and_then(|labels| labels.get(OWNER_LABEL)?.parse::<Owner>().ok());
            if let (Some(id), true) = (&container.id, owner.is_some_and(|owner| owner.is_gone())) {
                self.remove(id);
            }
        }
    }
}
