//! Who may do what: the policy language and the one function that decides every request.
//!
//! Knows: policies (the JSON policy language of AWS IAM, version 2012-10-17), their conditions and variables, and how
//! explicit deny, ownership, allow and default deny combine. Never knows: HTTP, buckets' contents, where policies are
//! kept, clocks.
//!
//! Read [`decide`] first. Whatever cannot be understood fails closed: a policy that does not parse, a condition whose
//! value cannot be compared, a variable that the request does not have.
//!
//! Source: "IAM JSON policy elements reference" and "Policy evaluation logic", AWS IAM User Guide.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod action;
mod condition;
mod decide;
mod json;
mod pattern;
mod policy;

pub use action::Action;
pub use condition::{Context, Cost};
pub use decide::{Ask, BucketRights, Caller, Decision, KeyRights, Why, decide};
pub use policy::{Attached, Malformed, POLICY_LEN_MAX, Policy};
