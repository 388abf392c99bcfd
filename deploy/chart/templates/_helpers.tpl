{{/* What cannot be installed, with the reason. The schema cannot compare values. */}}
{{- define "ztna.check" -}}
{{- if not (or .Values.server.enabled .Values.connector.enabled) }}
{{- fail "nothing to install: set server.enabled or connector.enabled" }}
{{- end }}
{{- with .Values.server }}
{{- if .enabled }}
{{- $settings := fromToml .config }}
{{- with $settings.Error }}
{{- fail (printf "server.config is no TOML: %s" .) }}
{{- end }}
{{- $set := dict "port" "always 4433" "metrics-port" "always 9090" "metrics-bind" "ipFamily" "admin-hosts" "the admin service" "state-dir" "the volume" "drain-grace" "server.drainGraceSeconds" "public-address" "server.publicAddress" "log-format" "logFormat" "log-level" "logLevel" }}
{{- if .certificateSecret }}
{{- $_ := merge $set (dict "cert" "server.certificateSecret" "key" "server.certificateSecret") }}
{{- end }}
{{- range $key, $where := $set }}
{{- if hasKey $settings $key }}
{{- fail (printf "server.config: %s has no effect here, since the chart sets it: %s" $key $where) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.connector }}
{{- if .enabled }}
{{- if not .services }}
{{- fail "connector.services is empty: name at least one service, such as web=tcp://web.default.svc:80" }}
{{- end }}
{{- if and .token.existingSecret .token.value }}
{{- fail "connector.token: give existingSecret or value, not both" }}
{{- end }}
{{- if not (or .token.existingSecret .token.value) }}
{{- fail "connector.token.existingSecret is empty: name the secret with a join token, which \"intermediate-server token create SERVICE --role connector\" makes on the relay" }}
{{- end }}
{{- if and .persistence.enabled (gt (int .replicas) 1) }}
{{- fail "connector.replicas: several cannot share the profile in one volume; set connector.persistence.enabled to false, and make a token with as many --uses" }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* 40 characters leave room for what Kubernetes appends. */}}
{{- define "ztna.fullname" -}}
{{- $name := .Release.Name }}
{{- if .Values.fullnameOverride }}
{{- $name = .Values.fullnameOverride }}
{{- else if not (contains .Chart.Name .Release.Name) }}
{{- $name = printf "%s-%s" .Release.Name .Chart.Name }}
{{- end }}
{{- $name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* The templates below take a dictionary: root, and part: server or connector. */}}
{{- define "ztna.name" -}}
{{- $name := include "ztna.fullname" .root }}
{{- if eq .part "server" }}{{ $name }}{{ else }}{{ $name }}-{{ .part }}{{ end }}
{{- end }}

{{- define "ztna.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end }}

{{- define "ztna.labels" -}}
{{ include "ztna.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "ztna.metadata" -}}
name: {{ include "ztna.name" . }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "ztna.labels" . | nindent 2 }}
{{- end }}

{{- define "ztna.podMetadata" -}}
{{- $values := index .root.Values .part -}}
labels:
  {{- include "ztna.labels" . | nindent 2 }}
  {{- with $values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $values.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* What every pod has: little. */}}
{{- define "ztna.pod" -}}
{{- $values := index .root.Values .part -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  # Else each start would let the group write all keys.
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* And every container. */}}
{{- define "ztna.container" -}}
{{- $values := index .root.Values .part -}}
{{- $image := .root.Values.image -}}
name: {{ .part }}
image: {{ if $image.digest }}{{ printf "%s@%s" $image.repository $image.digest | quote }}{{ else }}{{ printf "%s:%s" $image.repository ($image.tag | default .root.Chart.AppVersion) | quote }}{{ end }}
imagePullPolicy: {{ $image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- with $values.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* A directory within the volume, since volumes may belong to root or be open to everyone. */}}
{{- define "ztna.directories" -}}
- name: STATE_DIRECTORY
  value: /var/lib/intermediate-server/state
- name: RUNTIME_DIRECTORY
  value: /var/lib/intermediate-server/state
{{- end }}

{{/* For the kubelet, which asks at the address of the pod. */}}
{{- define "ztna.adminBind" -}}
{{ eq .Values.ipFamily "IPv6" | ternary "::" "0.0.0.0" | quote }}
{{- end }}

{{/* 0400, which YAML 1.1 and 1.2 read differently. */}}
{{- define "ztna.secretMode" -}}
256
{{- end }}

{{- define "ztna.tokenSecret" -}}
{{ .Values.connector.token.existingSecret | default (printf "%s-token" (include "ztna.name" (dict "root" . "part" "connector"))) }}
{{- end }}

{{- define "ztna.claim" -}}
accessModes: [{{ .accessMode }}]
{{- with .storageClass }}
storageClassName: {{ . }}
{{- end }}
resources:
  requests:
    storage: {{ .size }}
{{- end }}
