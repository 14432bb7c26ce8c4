package httppep

import (
	"net/http"
	"strconv"

	"github.com/writ-dev/writ/pep"
)

// Answer tells the caller no: status, a word, and the decision id under which
// an operator finds the reason. Nothing else leaves.
//
// To a gRPC call it is a response of trailers only with the status that
// https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md
// and the gRPC status codes suggest.
func Answer(w http.ResponseWriter, grpc bool, res pep.Result) {
	h := w.Header()
	if res.DecisionID != "" {
		h[DecisionID] = []string{res.DecisionID}
	}
	word := errorWord(res.Status)
	if grpc {
		h["Content-Type"] = []string{"application/grpc"}
		h["Grpc-Status"] = []string{strconv.Itoa(grpcStatus(res.Status))}
		h["Grpc-Message"] = []string{word + " (decision " + res.DecisionID + ")"}
		w.WriteHeader(http.StatusOK)
		return
	}
	body := Body(res)
	h["Content-Type"] = []string{"application/json"}
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	w.WriteHeader(res.Status)
	_, _ = w.Write(body)
}

// Body is the document that Answer sends over HTTP.
func Body(res pep.Result) []byte {
	b := make([]byte, 0, 96)
	b = append(b, `{"error":"`...)
	b = append(b, errorWord(res.Status)...)
	if res.DecisionID != "" {
		b = append(b, `","decision_id":`...)
		b = strconv.AppendQuote(b, res.DecisionID)
		return append(b, '}', '\n')
	}
	return append(b, '"', '}', '\n')
}

func errorWord(status int) string {
	switch status {
	case http.StatusForbidden:
		return "denied"
	case http.StatusBadRequest:
		return "malformed request"
	case http.StatusUnauthorized:
		return "identity expired"
	case http.StatusMethodNotAllowed:
		return "method not allowed"
	case http.StatusUnsupportedMediaType:
		return "not a gRPC request"
	case http.StatusRequestHeaderFieldsTooLarge:
		return "request head too large"
	case http.StatusBadGateway:
		return "upstream failed"
	case http.StatusServiceUnavailable:
		return "unavailable"
	case http.StatusGatewayTimeout:
		return "upstream timed out"
	}
	return "refused"
}

func grpcStatus(status int) int {
	switch status {
	case http.StatusForbidden:
		return 7 // PERMISSION_DENIED
	case http.StatusBadRequest:
		return 3 // INVALID_ARGUMENT
	case http.StatusUnauthorized:
		return 16 // UNAUTHENTICATED
	case http.StatusMethodNotAllowed, http.StatusUnsupportedMediaType:
		return 12 // UNIMPLEMENTED
	case http.StatusRequestHeaderFieldsTooLarge:
		return 8 // RESOURCE_EXHAUSTED
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return 14 // UNAVAILABLE
	}
	return 2 // UNKNOWN
}
