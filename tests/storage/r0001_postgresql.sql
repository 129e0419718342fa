--
-- PostgreSQL database dump
--

-- Dumped from database version 15.18 (Debian 15.18-0+deb12u1)
-- Dumped by pg_dump version 15.18 (Debian 15.18-0+deb12u1)

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

SET default_tablespace = '';

SET default_table_access_method = heap;

--
-- Name: feedback; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.feedback (
    nonce bytea NOT NULL,
    model text NOT NULL,
    version text NOT NULL,
    alias text,
    predicted_ms bigint NOT NULL,
    received_ms bigint NOT NULL,
    top text,
    confidence double precision,
    actual bigint,
    predicted_value double precision,
    actual_value double precision,
    rating smallint,
    CONSTRAINT feedback_nonce_length CHECK ((length(nonce) = 10)),
    CONSTRAINT feedback_rating_range CHECK (((rating >= 1) AND (rating <= 5)))
);

--
-- Name: headway_schema; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.headway_schema (
    version_num character varying(32) NOT NULL
);

--
-- Data for Name: feedback; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.feedback VALUES ('\x00000000000000000001', 'digits', '1.0.0', 'stable', 1700000000000, 1700000060000, '[3,8,9]', 0.75, 3, NULL, NULL, 5);
INSERT INTO public.feedback VALUES ('\x00000000000000000002', 'digits', '1.1.0', 'canary', 1700000001000, 1700000061000, '[7,1]', 0.5, 1, NULL, NULL, NULL);
INSERT INTO public.feedback VALUES ('\x00000000000000000003', 'wine', '2.0.0-rc.1', NULL, 1700000002000, 1700000062000, NULL, NULL, NULL, 0.1, 0.30000000000000004, NULL);

--
-- Data for Name: headway_schema; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.headway_schema VALUES ('0001');

--
-- Name: feedback feedback_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.feedback
    ADD CONSTRAINT feedback_pkey PRIMARY KEY (nonce);

--
-- Name: headway_schema headway_schema_pkc; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.headway_schema
    ADD CONSTRAINT headway_schema_pkc PRIMARY KEY (version_num);

--
-- Name: feedback_by_alias; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX feedback_by_alias ON public.feedback USING btree (model, version, alias, received_ms);

--
-- Name: feedback_by_model; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX feedback_by_model ON public.feedback USING btree (model, received_ms);

--
-- Name: feedback_by_time; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX feedback_by_time ON public.feedback USING btree (received_ms);

--
-- Name: feedback_by_version; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX feedback_by_version ON public.feedback USING btree (model, version, received_ms);

--
-- PostgreSQL database dump complete
--

