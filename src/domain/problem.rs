//! RFC 9457 problem details, the one form of every error answer.

use super::Rejection;

pub const CONTENT_TYPE: &str = "application/problem+json";

impl Rejection {
    /// The problem document: `type`, `title`, `status`, `detail`, `request_id`, and members of the problem's own.
    pub fn problem(&self, request_id: &str) -> serde_json::Value {
        let status = self.status();
        let title = http::StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("Error");
        let mut problem = serde_json::json!({
            "type": format!("/problems/{}", self.code()),
            "title": title,
            "status": status,
            "detail": self.detail(),
            "request_id": request_id,
        });
        match self {
            Rejection::QuotaExceeded { policies, .. } => problem["violated-policies"] = serde_json::json!(policies),
            Rejection::TierRequired { needs } | Rejection::OverTier { needs, .. } => {
                problem["needs_tier"] = serde_json::json!(needs);
            }
            _ => {}
        }
        problem
    }
}
