//! A node reached over HTTP.

use super::{Bank, BankError};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::time::Duration;
use storenode::client::{ClientError, ClientLimits, NodeClient};
use storenode::token::Token;
use storenode::wire::{Envelope, Reply, Request};

/// See the module.
#[derive(Clone)]
pub struct HttpBank {
    client: NodeClient,
}

impl HttpBank {
    /// A node at `host:port` that is given `token`.
    ///
    /// # Errors
    /// A message for people when the address or the token cannot be used.
    pub fn new(address: &str, token: &str) -> Result<Self, String> {
        let token: Token = token.trim().parse()?;
        Ok(Self { client: NodeClient::new(address, &token, ClientLimits::default())? })
    }
}

impl Bank for HttpBank {
    fn call(
        &self,
        envelope: Envelope,
        request: Request,
        bulk: Vec<Bytes>,
        deadline: Duration,
    ) -> BoxFuture<'_, Result<(Reply, Bytes), BankError>> {
        async move {
            self.client.call(envelope, &request, bulk, deadline).await.map_err(|e| match e {
                ClientError::Unreachable(why) => BankError::Unreachable(why),
                ClientError::Timeout(_) => BankError::Timeout,
                ClientError::Refused(refusal) => BankError::Refused(refusal),
                ClientError::Garbled(what) => BankError::Garbled(what),
            })
        }
        .boxed()
    }

    fn name(&self) -> String {
        let url = self.client.base_url();
        url.strip_prefix("http://").unwrap_or(url).to_string()
    }
}
