//! Storage classes: the names of pools.

use super::Gateway;
use crate::error::{Code, Result, S3Error};
use crate::names;
use crate::request::Request;
use client::STANDARD;

/// The pool of the class that a write asks for; 0: the bucket's own.
pub async fn pool_of_write(gateway: &Gateway, request: &Request) -> Result<u32> {
    match request.header(&names::STORAGE_CLASS) {
        None | Some("" | STANDARD) => Ok(0),
        Some(class) => pool_of(gateway, class).await,
    }
}

/// Refuses classes that mean nothing here.
pub async fn pool_of(gateway: &Gateway, class: &str) -> Result<u32> {
    let unknown = || {
        let message = "The storage class you specified is not valid: this cluster has no pool of that name.";
        S3Error::new(Code::InvalidStorageClass, message).field("StorageClassRequested", class)
    };
    gateway.client.pool_of_class(class).await?.ok_or_else(unknown)
}
