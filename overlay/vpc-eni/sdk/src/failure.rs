//! What the SDK calls an error, in the words of [`CallError`].

use std::error::Error;
use std::iter::successors;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use vpc_eni::ec2::{Action, CallError, Why};

use crate::reply::Unusable;

/// What a call failed with.
pub(crate) fn call_error<E>(action: Action, error: SdkError<E>) -> CallError
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let why = match &error {
        SdkError::ServiceError(answer) => {
            let status = answer.raw().status().as_u16();
            refusal(answer.err(), status)
        }
        // The SDK has one variant for everything that went wrong before there was a reply; what went wrong is among
        // its sources.
        _ => match sources(&error).find_map(|source| source.downcast_ref::<CredentialsError>()) {
            Some(missing) => Why::NoCredentials(words(missing)),
            None => Why::NoAnswer(words(&error)),
        },
    };
    CallError { action, why }
}

/// EC2's error, or that what answered (a proxy, a load balancer) did not speak as EC2 does.
fn refusal(error: &impl ProvideErrorMetadata, status: u16) -> Why {
    match error.code() {
        Some(code) if !code.is_empty() => Why::Refused {
            code: code.to_owned(),
            message: error.message().unwrap_or_default().to_owned(),
        },
        _ => Why::NoAnswer(format!("HTTP {status} without an error of EC2")),
    }
}

/// A reply that cannot be used.
pub(crate) fn unusable(action: Action, why: &Unusable) -> CallError {
    let why = Why::NoAnswer(why.to_string());
    CallError { action, why }
}

/// An error and its sources, from the outermost.
fn sources<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    successors(Some(error), |&error| error.source())
}

/// An error with all its sources, on one line.
pub(crate) fn words(error: &(dyn Error + 'static)) -> String {
    let mut words: Vec<String> = sources(error).map(ToString::to_string).collect();
    // Wrappers that say what they wrap.
    words.dedup();
    let words = words.join(": ");
    words.split('\n').map(str::trim).collect::<Vec<_>>().join("; ")
}
